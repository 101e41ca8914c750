package refresh_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/refresh"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	template, err := refresh.Template(map[string]string{
		"config.json": `{"auth":"{{ .Token }}","until":"{{ .ExpiresAt }}"}`, "user": "git",
	})
	if err != nil {
		t.Fatal(err)
	}
	token := refresh.NewToken("abc", now, now.Add(time.Hour), time.Time{})
	for _, test := range []struct {
		name   string
		format refresh.Format
		want   map[string][]byte
	}{
		{"bearerToken", refresh.BearerToken(), map[string][]byte{"bearerToken": []byte("abc")}},
		{"basicAuth", refresh.BasicAuth("git"), map[string][]byte{"username": []byte("git"), "password": []byte("abc")}},
		{"template", template, map[string][]byte{
			"config.json": []byte(`{"auth":"abc","until":"2026-03-01T13:00:00Z"}`), "user": []byte("git"),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := test.format.Render(token)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for _, key := range test.format.Keys() {
				if len(got[key]) == 0 {
					t.Errorf("key %q is owned and not written", key)
				}
			}
		})
	}
}

func TestTemplateErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sources map[string]string
		want    string
	}{
		"no keys":        {nil, "name at least one key"},
		"does not parse": {map[string]string{"k": "{{ .Token"}, `key "k"`},
		"unknown field":  {map[string]string{"k": "{{ .Tokne }}"}, `template of key "k" failed`},
		"no token":       {map[string]string{"k": "{{ .ExpiresAt }}"}, "no key uses {{ .Token }}"},
		"empty":          {map[string]string{"k": "{{ .Token }}", "e": "{{ if false }}x{{ end }}"}, `template of key "e" renders to nothing`},
		"fails":          {map[string]string{"k": `{{ .Token }}{{ index .Token 99 }}`}, `template of key "k" failed`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := refresh.Template(test.sources); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

// What renders for the probe can fail for a token, or leave nothing of it: the error names the key alone.
func TestTemplateErrorNamesTheKeyAlone(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("secret-", 10)
	for source, want := range map[string]string{
		`{{ .Token }}{{ if gt (len .Token) 30 }}{{ index .Token 9999 }}{{ end }}`: `template of key "k" failed`,
		`{{ if lt (len .Token) 30 }}{{ .Token }}{{ end }}`:                        `template of key "k" renders to nothing`,
	} {
		format, err := refresh.Template(map[string]string{"k": source})
		if err != nil {
			t.Fatal(err)
		}
		content, err := format.Render(refresh.NewToken(secret, now, now.Add(time.Hour), time.Time{}))
		if err == nil || err.Error() != want || content != nil {
			t.Errorf("%s: error %v with %d keys, want %q and none", source, err, len(content), want)
		}
	}
}

func TestContentHash(t *testing.T) {
	t.Parallel()
	f := refresh.BasicAuth("git")
	base := map[string][]byte{"username": []byte("git"), "password": []byte("abc"), "ca.crt": []byte("x")}
	hash := f.ContentHash(base)
	if len(hash) != 16 {
		t.Fatalf("hash %q, want 16 hex digits", hash)
	}
	for name, test := range map[string]struct {
		data map[string][]byte
		same bool
	}{
		"other keys do not count": {map[string][]byte{"username": []byte("git"), "password": []byte("abc")}, true},
		"another value":           {map[string][]byte{"username": []byte("git"), "password": []byte("abd")}, false},
		"a moved boundary":        {map[string][]byte{"username": []byte("gi"), "password": []byte("tabc")}, false},
	} {
		if got := f.ContentHash(test.data); (got == hash) != test.same {
			t.Errorf("%s: %s, base %s", name, got, hash)
		}
	}
	for name, data := range map[string]map[string][]byte{
		"missing": {"username": []byte("git")}, "empty": {"username": []byte("git"), "password": {}}, "nil": nil,
	} {
		if got := f.ContentHash(data); got != "" {
			t.Errorf("%s: %q, want none", name, got)
		}
	}
}

func TestParseName(t *testing.T) {
	t.Parallel()
	got, err := refresh.ParseName("flux-system/git")
	if want := (refresh.Name{Namespace: "flux-system", Name: "git"}); err != nil || got != want || got.String() != "flux-system/git" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "git", "/git", "ns/", "a/b/c"} {
		if _, err := refresh.ParseName(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
