package devops

// What Azure DevOps says no with.

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
)

// Answer is one answer that pays no heed to the request: a Status with a Header and a Body, or none at all.
type Answer struct {
	Status int
	Header http.Header
	Body   string
	// Hang answers nothing until the client leaves.
	Hang bool
}

// signIn is the path of the page that asks people for a password.
const signIn = "/_signin"

// SignIn is 302 to the sign-in page, which stands at another path of the same host.
func SignIn() Answer {
	return Answer{Status: http.StatusFound, Header: http.Header{"Location": {signIn + "?realm=dev.azure.com"}}}
}

// SignInPage is the sign-in page itself, with status 200 or 203.
func SignInPage(status int) Answer {
	return page(status, "Azure DevOps Services | Sign In", "Sign in to your account", 12<<10)
}

// Unauthorized is 401 with a page of 90 kB, as Azure DevOps has it.
func Unauthorized() Answer {
	const why = "TF400813: The user '' is not authorized to access this resource."
	a := page(http.StatusUnauthorized, "Access Denied: "+why, why, 90<<10)
	a.Header.Add("WWW-Authenticate", `Bearer authorization_uri=https://login.microsoftonline.com/`)
	a.Header.Add("WWW-Authenticate", `Basic realm="https://dev.azure.com/"`)
	return a
}

// Anonymous is the 401 for those who bring no credentials.
func Anonymous() Answer {
	a := Unauthorized()
	a.Body = "TF400813: Resource not available for anonymous access. Client authentication required."
	a.Header.Set("Content-Type", "text/plain; charset=utf-8")
	return a
}

// Forbidden is 403: an identity that may sign in, without a permission.
func Forbidden() Answer {
	return text(http.StatusForbidden, "TF401027: You need the Git 'GenericRead' permission to perform this action.")
}

// NotFound is 404, for a repository that is not there and for one that may not be read alike.
func NotFound() Answer {
	return text(http.StatusNotFound, "TF401019: The Git repository with name or identifier repo does not exist "+
		"or you do not have permissions for the operation you are attempting.")
}

// Unavailable is 503, with a page.
func Unavailable() Answer {
	return page(http.StatusServiceUnavailable, "Azure DevOps Services Unavailable", "Our services aren't available right now", 0)
}

// Hang takes the request and never answers.
func Hang() Answer { return Answer{Hang: true} }

func text(status int, body string) Answer {
	return Answer{Status: status, Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, Body: body}
}

// page is HTML of at least size bytes.
func page(status int, title, heading string, size int) Answer {
	const script = "<script>window.__vssPageContext = {};</script>\n"
	body := fmt.Sprintf("<!DOCTYPE html>\n<html lang=\"en-US\">\n<head><title>%s</title></head>\n<body><h1>%s</h1>\n", title, heading)
	body += strings.Repeat(script, size/len(script)+1) + "</body></html>\n"
	return Answer{Status: status, Header: http.Header{"Content-Type": {"text/html; charset=utf-8"}}, Body: body}
}

func (a Answer) write(w http.ResponseWriter) {
	h := w.Header()
	maps.Copy(h, a.Header)
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = w.Write([]byte(a.Body)) // the client may have left
}
