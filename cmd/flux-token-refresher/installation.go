package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/election"
	"flux-token-refresher/flux"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/gitremote"
	"flux-token-refresher/refresh/secret"
	"flux-token-refresher/telemetry"
)

// installation is the product wired up: what run and once have in common.
type installation struct {
	config    *config.Config
	telemetry *telemetry.Telemetry
	core      *coreclient.CoreV1Client
	election  election.Config
	store     *secret.Store
	recorder  *secret.Recorder
	requester *secret.Requester
	flux      *flux.API
	remote    *gitremote.Remote
}

func (f *flags) install(ctx context.Context, stderr io.Writer) (*installation, error) {
	format, level, err := f.logging()
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(f.config, os.Getenv)
	if err != nil {
		return nil, err
	}
	access, err := f.kube()
	if err != nil {
		return nil, err
	}
	core, err1 := coreclient.NewForConfig(access)
	coordination, err2 := coordinationclient.NewForConfig(access)
	objects, err3 := flux.NewAPI(access)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	remote, err := gitremote.New(cfg.Verify)
	if err != nil {
		return nil, fmt.Errorf("refresh.verifyHosts: %w", err)
	}
	tel, err := telemetry.Start(ctx, telemetry.Config{
		ServiceVersion: versionOf().Version, Revision: versionOf().Revision,
		PodNamespace: os.Getenv("POD_NAMESPACE"), PodName: cfg.PodName,
		LogWriter: stderr, LogFormat: format, LogLevel: level,
	})
	if err != nil {
		return nil, err
	}
	name := cfg.PodName
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("no POD_NAME, and no host name: %w", err)
		}
	}
	return &installation{
		config: cfg, telemetry: tel, core: core,
		election: election.Config{
			Client: coordination,
			Lease:  types.NamespacedName(cfg.Election.Lease),
			// A restarted container has its pod's name again; it must not take its predecessor's Lease for its own.
			Identity:      name + "_" + strings.ToLower(rand.Text()[:8]),
			LeaseDuration: cfg.Election.LeaseDuration,
			RenewDeadline: cfg.Election.RenewDeadline,
			RetryPeriod:   cfg.Election.RetryPeriod,
			Logger:        tel.Logger(),
			MeterProvider: tel.MeterProvider(),
		},
		store:     secret.New(core, tel.Logger()),
		recorder:  secret.NewRecorder(core, name, tel.Logger()),
		requester: secret.NewRequester(core),
		flux:      objects,
		remote:    remote,
	}, nil
}

// kube gives access to the API server.
func (f *flags) kube() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	access, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no access to a Kubernetes API: run in a pod, or give --kubeconfig: %w", err)
	}
	access.UserAgent = "flux-token-refresher/" + versionOf().Version
	access.WarningHandler = rest.NoWarnings{} // they could quote what was sent
	access.QPS = -1                           // kube-apiserver's own fairness decides
	access.Timeout = 0                        // it would end watches; every other request has its own deadline
	kube.Trace(access)
	return access, nil
}

// lead does the work of one term of leadership. It starts with no token: one that was held before could have been replaced by
// another leader meanwhile.
func (i *installation) lead(ctx context.Context, fresh func() bool, work func(*refresh.Refresher, context.Context) error) error {
	source, err := azure.New(azure.Config{
		Identities:     i.config.Identities,
		Cluster:        proofs{i.core},
		TracerProvider: i.telemetry.TracerProvider(),
		MeterProvider:  i.telemetry.MeterProvider(),
	})
	if err != nil {
		return err
	}
	sources := i.sources(fresh)
	watching, stop := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error { return sources.Run(watching) })
	group.Go(func() error {
		defer stop()
		return work(&refresh.Refresher{
			Targets: i.config.Targets, Policy: i.config.Refresh,
			Source: source, Store: i.store, Readers: sources, Recorder: i.recorder, Fresh: fresh,
			Logger: i.telemetry.Logger(), TracerProvider: i.telemetry.TracerProvider(), MeterProvider: i.telemetry.MeterProvider(),
		}, ctx)
	})
	return group.Wait()
}
