package events

// The same way for events that come in no request: a file that a job was started with.

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// file is the sender of what Handle is given. Nobody proves anything: whoever may start the job decides what is in it.
var file = Sender{Name: "file", Namespaces: []string{"*"}}

// Handle does with content what Handler does with the body of a request of the media type application/json, and asks for no proof: it
// is a CloudEvent in the JSON format, an array of them, or the JSON that Flux posts. When it returns without an error, what the
// events ask for is durable. Other errors than ErrInvalid may pass, and asking again changes nothing.
func Handle(ctx context.Context, c Config, router Router, requester Requester, content []byte) (answers []Answer, err error) {
	r, err := newReceiver(c, router, requester)
	if err != nil {
		return nil, err
	}
	received := time.Now()
	ctx, span := r.instruments.startFile(ctx, file, received)
	defer func() { span.endFile(err) }()
	if len(content) > MaxSize {
		err = refuse(tooLarge, fmt.Sprintf("it may have %d bytes", MaxSize))
	} else {
		answers, _, err = r.handle(ctx, span, file, http.Header{"Content-Type": {mediaJSON}}, content, received)
	}
	if err == nil {
		return answers, nil
	}
	refusal := asRefusal(err)
	r.instruments.refused(ctx, refusal.why)
	if refusal.cause != nil { // there is no sender to keep it from
		return nil, refusal.cause
	}
	return nil, refusal
}
