package refresh_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/refresh"
)

func TestTokenRedactsItself(t *testing.T) {
	t.Parallel()
	const value = "eyJ0eXAiOiJKV1QifQ.secret.value"
	token := refresh.NewToken(value, now, now.Add(time.Hour), time.Time{})
	type hidden struct {
		name  string
		token refresh.Token
		ptr   *refresh.Token
	}
	type shown struct {
		Token refresh.Token
		Map   map[string]refresh.Token
		Any   any
	}
	var logged bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		log := slog.New(handler)
		log.Info("token", "token", token, "ptr", &token, "hidden", hidden{"h", token, &token}, "shown", shown{Token: token, Any: &token})
	}
	out := logged.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%e", "%t", "%c", "%U", "%T", "%p", "%10v", "%!"} {
		for _, what := range []any{token, &token, hidden{"h", token, &token}, &hidden{"h", token, &token}, shown{Token: token, Map: map[string]refresh.Token{"k": token}, Any: token}, []refresh.Token{token}, []any{token, &token}} {
			out += fmt.Sprintf(verb, what)
		}
	}
	encoded, err := json.Marshal(shown{Token: token, Map: map[string]refresh.Token{"k": token}, Any: &token})
	if err != nil {
		t.Fatal(err)
	}
	out += string(encoded) + fmt.Sprint(token) + fmt.Errorf("with %v and %w", token, errors.New("x")).Error()
	for _, form := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), fmt.Sprintf("%d", []byte(value))} {
		if strings.Contains(out, form) {
			t.Errorf("printed as %.20s…", form)
		}
	}
	if !strings.Contains(out, token.Hash) {
		t.Error("the hash is not printed, so nobody can tell tokens apart")
	}
	if token.Reveal() != value {
		t.Error("Reveal does not give the value")
	}
}

func TestZeroToken(t *testing.T) {
	t.Parallel()
	var token refresh.Token
	if !token.IsZero() || token.Reveal() != "" || token.Alive(now) {
		t.Errorf("the zero Token is alive or has a value: %v", token)
	}
}

func TestTokenAlive(t *testing.T) {
	t.Parallel()
	token := refresh.NewToken("t", now, now.Add(time.Hour), time.Time{})
	if !token.Alive(now.Add(time.Hour-1)) || token.Alive(now.Add(time.Hour)) {
		t.Error("a token lives until, not at, its end")
	}
}
