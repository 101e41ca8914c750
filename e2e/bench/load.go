package main

// Who sends the events, and how fast they are answered.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

var secret = []byte("a key of this bench, which is thrown away")

// events gives requests as notification-controller posts them (Provider type generic-hmac), about sources that cannot be reached.
func events() [][]byte {
	requests := make([][]byte, 64)
	for i := range requests {
		body := fmt.Appendf(nil, `{"involvedObject":{"kind":"GitRepository","namespace":"bench","name":"source-%d","uid":"bee1e6cd-2a26-482c-b203-3ebff3213b%02x","apiVersion":"source.toolkit.fluxcd.io/v1","resourceVersion":"%d"},`+
			`"severity":"error","timestamp":%q,"message":"failed to checkout and determine revision: unable to list remote for 'https://dev.azure.com/contoso/platform/_git/source-%d': dial tcp 10.0.0.%d:443: i/o timeout",`+
			`"reason":"GitOperationFailed","reportingController":"source-controller","reportingInstance":"source-controller-5d4f8c7b9-x2x2x"}`,
			i, i, 400+i, time.Now().UTC().Format(time.RFC3339), i, i)
		mac := hmac.New(sha256.New, secret)
		mac.Write(body)
		var request bytes.Buffer
		fmt.Fprintf(&request, "POST /events HTTP/1.1\r\nHost: bench\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\nContent-Type: application/json\r\nGotk-Component: source-controller\r\nX-Signature: sha256=%s\r\n\r\n",
			len(body), hex.EncodeToString(mac.Sum(nil)))
		request.Write(body)
		requests[i] = request.Bytes()
	}
	return requests
}

// measure is what came of one round.
type measure struct {
	perSecond float64
	p50, p99  time.Duration
}

// load sends requests by so many clients at once for a while, each as soon as its last one was answered. An answer other than 202 is an
// error.
func load(ctx context.Context, address string, requests [][]byte, clients int, during time.Duration) (measure, error) {
	ctx, cancel := context.WithTimeout(ctx, during+patient)
	defer cancel()
	took := make([][]time.Duration, clients)
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		group.Go(func() (err error) {
			took[c], err = send(ctx, address, requests, c, began.Add(during))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return measure{}, err
	}
	elapsed := time.Since(began)
	all := slices.Concat(took...)
	slices.Sort(all)
	return measure{perSecond: float64(len(all)) / elapsed.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100]}, nil
}

// send is one client, with one connection.
func send(ctx context.Context, address string, requests [][]byte, first int, until time.Time) ([]time.Duration, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	var took []time.Duration
	for n := first; ; n++ {
		began := time.Now()
		if !began.Before(until) {
			return took, nil
		}
		if _, err := conn.Write(requests[n%len(requests)]); err != nil {
			return nil, err
		}
		answer, err := http.ReadResponse(answers, nil)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return nil, err
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusAccepted {
			return nil, fmt.Errorf("answered with %s", answer.Status)
		}
		took = append(took, time.Since(began))
	}
}
