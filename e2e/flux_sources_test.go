package e2e

// Flux's objects as the product sees them: whose Secret an event is about, who fails, and who is woken.

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	fluxtest "flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/flux"
	"flux-token-refresher/refresh"
)

// allowSources grants the account, whose access config is, what it may do with Flux's objects, and no more.
func allowSources(t *testing.T, config *rest.Config, namespace string) {
	t.Helper()
	client := newClient(t).RbacV1()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "sources"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"source.toolkit.fluxcd.io", "image.toolkit.fluxcd.io"},
		Resources: []string{
			"buckets", "gitrepositories", "helmcharts", "helmrepositories", "ocirepositories", "imagerepositories", "imageupdateautomations",
		},
		Verbs: []string{"get", "list", "watch", "patch"},
	}}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "sources"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "refresher"}},
	}
	if _, err := client.Roles(namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.RoleBindings(namespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitRule(t, config, namespace, role.Rules[0])
}

// TestSources: with the rights of a replica, on Flux's own objects and events. The image group is not installed here.
func TestSources(t *testing.T) {
	t.Parallel()
	s := newSources(t, controlPlane, fluxOf(t), newNamespace(t), newEntra(t))
	target := refresh.Target{Name: refresh.Name{Namespace: s.namespace, Name: credential}, Verify: true}
	config := secretAccount(t, s.namespace)
	allowSources(t, config, s.namespace)
	api, err := flux.NewAPI(config)
	if err != nil {
		t.Fatal(err)
	}
	router := flux.NewRouter(api, []refresh.Name{target.Name}, slog.New(slog.DiscardHandler))
	asks, asked := make(chan flux.Ask, 100), make(chan string, 100)
	watched := flux.NewSources(flux.SourcesConfig{
		API: api, Targets: []refresh.Target{target},
		Ask: func(_ context.Context, url string, _ refresh.Token) refresh.Trial {
			asked <- url
			return refresh.Trial{Accepted: 1}
		},
		Request: func(_ context.Context, name refresh.Name, ask flux.Ask) (bool, error) {
			if name != target.Name {
				t.Errorf("asked for %s", name)
			}
			asks <- ask
			return false, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := watched.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(running.Wait)
	t.Cleanup(cancel)

	hook := s.webhook(t)
	repository := s.repository(t, "repo")
	token := s.write(t)
	s.read(t, "source", repository)
	s.await(t, "source", isReady)
	trial, err := watched.Try(t.Context(), target, refresh.NewToken(token, time.Now(), time.Now().Add(time.Hour), time.Time{}), false)
	if url := <-asked; err != nil || trial.Accepted != 1 || url != repository.URL {
		t.Errorf("%+v, %v, asked at %s; want %s", trial, err, url, repository.URL)
	}

	ids := map[string]bool{}
	for range 2 {
		s.devops.Revoke(token)
		s.ask(t, "source")
		route(t, router, hook.next(t).body, target.Name)
		ask := nextAsk(t, asks)
		failed := s.await(t, "source", isFailed)
		if ids[ask.ID] = true; ask.Verdict != flux.AuthFailure {
			t.Errorf("asked for %+v", ask)
		}
		t.Logf("asked %s after Ready was False", time.Since(fluxtest.Ready(failed).LastTransitionTime.Time).Round(time.Second))

		token = s.write(t)
		began := time.Now()
		if n, err := watched.Wake(t.Context(), target); n != 1 || err != nil {
			t.Errorf("%d woken, %v", n, err)
		}
		s.await(t, "source", isReady)
		t.Logf("Ready %s after it was woken", time.Since(began).Round(time.Millisecond))
	}
	if len(ids) != 2 || len(asks) > 0 {
		t.Errorf("%d failures asked for, and %d more times, want 2", len(ids), len(asks))
	}
}

func route(t *testing.T, router *flux.Router, body []byte, want refresh.Name) {
	t.Helper()
	_, e, err := flux.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	c := router.Reported(e, func(string) bool { return true })
	targets, err := router.ReportedTargets(t.Context(), e)
	if err != nil || len(targets) != 1 || targets[0] != want || c.Verdict != flux.AuthFailure {
		t.Errorf("%+v, %v, %v; want %s", c, targets, err, want)
	}
}

func nextAsk(t *testing.T, asks <-chan flux.Ask) flux.Ask {
	t.Helper()
	select {
	case ask := <-asks:
		return ask
	case <-patient(t).Done():
		t.Fatal("nothing was asked for")
		return flux.Ask{}
	}
}
