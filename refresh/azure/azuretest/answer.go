// Scripted answers of the token endpoint.

package azuretest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
)

// Answer is one answer of the token endpoint that pays no heed to the request: a Status with a Header and a Body, one of
// Entra's own errors, or none at all.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	// Code makes it Entra's error AADSTS<Code>, with that error's own status and body.
	Code int
	// Hang answers nothing until the client leaves.
	Hang bool
}

// AADSTS is Entra's error of that number.
func AADSTS(code int) Answer { return Answer{Code: code} }

// Throttled is 429 with a Retry-After (seconds, or an HTTP date); without one when it is empty.
func Throttled(retryAfter string) Answer {
	a := Answer{Status: http.StatusTooManyRequests, Header: http.Header{}}
	if retryAfter != "" {
		a.Header.Set("Retry-After", retryAfter)
	}
	return a
}

// Broken is an error page of something before Entra: a 5xx with HTML.
func Broken(status int) Answer {
	return Answer{
		Status: status,
		Header: http.Header{"Content-Type": {"text/html"}},
		Body:   fmt.Sprintf("<!DOCTYPE html><html><head><title>%d</title></head><body><h2>Our services aren't available right now</h2></body></html>", status),
	}
}

// Garbage is 200 with JSON that ends early.
func Garbage() Answer {
	return Answer{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: `{"access_token":`}
}

// Hang accepts the request and never answers.
func Hang() Answer { return Answer{Hang: true} }

func (a Answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store, no-cache")
	h.Set("Pragma", "no-cache")
	maps.Copy(h, a.Header)
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = w.Write([]byte(a.Body)) // the client may have left
}

func jsonAnswer(status int, body map[string]any) Answer {
	content, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return Answer{Status: status, Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}, Body: string(content)}
}
