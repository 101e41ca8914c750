package events

// The TLS that senders speak, with files that change while the server runs.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// TLSFiles are PEM files. They are looked at for each connection, so a mounted Secret that changes needs no restart.
type TLSFiles struct {
	// Certificate is the server's, with its intermediates; Key is its private key.
	Certificate, Key string
	// ClientCA holds the certificates of who may issue those of clients (see Sender.ClientName); with "" no client is asked for one.
	ClientCA string
}

// ServerTLS serves TLS 1.3. A client may do without a certificate, and prove itself otherwise; one that it shows must be valid for
// clients. Sessions are not resumed, so that a certificate authority that was taken out of its file is trusted no longer. While the
// files cannot be used, those that could be used last still count, and logger (nil is slog's default) hears of it once. An error says that they cannot be used
// at the start.
func ServerTLS(files TLSFiles, logger *slog.Logger) (*tls.Config, error) {
	if logger == nil {
		logger = slog.Default()
	}
	c := &certificates{files: files, logger: logger}
	var err error
	c.seen = c.look()
	if c.config, err = c.load(c.seen); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return c.current(hello.Context()), nil
	}}, nil
}

type certificates struct {
	files  TLSFiles
	logger *slog.Logger

	mu sync.Mutex
	// config is what the files gave when they could be used last; seen is how they looked last, used or not.
	config *tls.Config
	seen   look
}

// look is what the files hold, or why that is not known.
type look struct {
	certificate, key, clientCA []byte
	err                        error
}

func (l look) equal(o look) bool {
	return bytes.Equal(l.certificate, o.certificate) && bytes.Equal(l.key, o.key) && bytes.Equal(l.clientCA, o.clientCA) &&
		fmt.Sprint(l.err) == fmt.Sprint(o.err)
}

// current gives what the files hold now, or held when they could be used last.
func (c *certificates) current(ctx context.Context) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	if now.equal(c.seen) {
		return c.config
	}
	c.seen = now
	config, err := c.load(now)
	if err != nil {
		c.logger.WarnContext(ctx, "the certificates for senders of events cannot be used; those before still count", "error", err)
		return c.config
	}
	c.logger.InfoContext(ctx, "the certificates for senders of events were read again")
	c.config = config
	return config
}

func (c *certificates) look() (l look) {
	for _, file := range []struct {
		name string
		into *[]byte
	}{{c.files.Certificate, &l.certificate}, {c.files.Key, &l.key}, {c.files.ClientCA, &l.clientCA}} {
		if file.name == "" {
			continue
		}
		if *file.into, l.err = os.ReadFile(file.name); l.err != nil {
			return l
		}
	}
	return l
}

func (c *certificates) load(l look) (*tls.Config, error) {
	if l.err != nil {
		return nil, l.err
	}
	pair, err := tls.X509KeyPair(l.certificate, l.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", c.files.Certificate, c.files.Key, err)
	}
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"http/1.1"},
		Certificates:           []tls.Certificate{pair},
		SessionTicketsDisabled: true,
	}
	if c.files.ClientCA != "" {
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(l.clientCA) {
			return nil, errors.New(c.files.ClientCA + ": there is no certificate in it")
		}
	}
	return config, nil
}
