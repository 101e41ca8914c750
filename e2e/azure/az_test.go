package azure

// A stand-in for az that answers from a record, applies --query as az does, and writes down its calls.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jmespath/go-jmespath"
)

// An exchange is one call of az and its answer, shaped after the documentation of the Azure CLI and of the REST API of
// Azure DevOps 7.1: nobody recorded these from an Azure subscription.
type exchange struct {
	Call   string          `json:"call"`   // without --output, --query and --body; az rest as "rest METHOD URL"
	Body   any             `json:"body"`   // what --body has to be
	When   []string        `json:"when"`   // what has to be so; "!" negates
	Makes  []string        `json:"makes"`  // what is so after it: it changes something
	Answer json.RawMessage `json:"answer"` // before --query
	Fails  string          `json:"fails"`  // instead of an answer: the message of exit code 1
}

// A world is a folder with what the stand-in's processes share: which exchanges to answer from, what is so, and what was
// called.
type world struct {
	Exchanges []exchange `json:"exchanges"`
	So        []string   `json:"so"`
	Calls     []string   `json:"calls"`
	Changes   []string   `json:"changes"`
	// FailAt makes the change with that number, from 1, fail without an effect. Zero: none.
	FailAt int `json:"failAt"`
}

const worldFile = "world.json"

func readWorld(dir string) (world, error) {
	var w world
	data, err := os.ReadFile(filepath.Join(dir, worldFile))
	if err != nil {
		return w, err
	}
	return w, json.Unmarshal(data, &w)
}

func (w world) write(dir string) error {
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, worldFile), data, 0o600)
}

// worldEnv names the folder; where it is set the test binary is az.
const worldEnv = "FTR_E2E_AZ"

func TestMain(m *testing.M) {
	dir, ok := os.LookupEnv(worldEnv)
	if !ok {
		os.Exit(m.Run())
	}
	if err := az(dir, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ERROR:", err)
		os.Exit(1)
	}
}

func az(dir string, args []string, out io.Writer) error {
	w, err := readWorld(dir)
	if err != nil {
		return err
	}
	c, err := parseCall(args)
	if err != nil {
		return err
	}
	w.Calls = append(w.Calls, c.text)
	i := slices.IndexFunc(w.Exchanges, func(e exchange) bool { return w.fits(e, c) })
	if i < 0 {
		return errors.Join(fmt.Errorf("nothing is recorded for %q with the body %v while %q", c.text, c.body, w.So), w.write(dir))
	}
	e := w.Exchanges[i]
	failed := e.Fails
	if len(e.Makes) > 0 {
		w.Changes = append(w.Changes, c.text)
		if len(w.Changes) == w.FailAt {
			w.Changes = w.Changes[:w.FailAt-1]
			w.FailAt = 0
			failed = "Service Unavailable"
		} else {
			w.become(e.Makes)
		}
	}
	if err := w.write(dir); err != nil {
		return err
	}
	if failed != "" {
		return errors.New(failed)
	}
	return c.print(e.Answer, out)
}

func (w world) fits(e exchange, c call) bool {
	return e.Call == c.text && reflect.DeepEqual(e.Body, c.body) && !slices.ContainsFunc(e.When, func(fact string) bool {
		fact, not := strings.CutPrefix(fact, "!")
		return slices.Contains(w.So, fact) == not
	})
}

func (w *world) become(facts []string) {
	for _, fact := range facts {
		if not, ok := strings.CutPrefix(fact, "!"); ok {
			w.So = slices.DeleteFunc(w.So, func(so string) bool { return so == not })
		} else {
			w.So = append(w.So, fact)
		}
	}
}

type call struct {
	text   string // as in exchange.Call
	body   any
	query  string
	output string
}

func parseCall(args []string) (call, error) {
	c := call{output: "json"}
	var words []string
	rest := map[string]string{}
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "--") {
			words = append(words, args[i])
			continue
		}
		if i+1 == len(args) {
			return c, fmt.Errorf("argument %s: expected one argument", args[i])
		}
		flag, value := args[i], args[i+1]
		i++
		switch {
		case flag == "--query":
			c.query = value
		case flag == "--output":
			c.output = value
		case flag == "--body":
			if err := json.Unmarshal([]byte(value), &c.body); err != nil {
				return c, fmt.Errorf("the body is no JSON: %w", err)
			}
		case words[0] == "rest":
			rest[flag] = value
		default:
			words = append(words, flag, value)
		}
	}
	c.text = strings.Join(words, " ")
	if c.text != "rest" {
		return c, nil
	}
	// The resource whose token is sent: without it az takes one of Azure Resource Manager's.
	if got, want := rest["--resource"], "499b84ac-1321-427f-aa17-267ca6975798"; got != want {
		return c, fmt.Errorf("a token for the resource %q, want %s", got, want)
	}
	// What the documentation asks for with PATCH; az sends application/json unless told otherwise.
	if got, want := rest["--headers"], "Content-Type=application/json-patch+json"; rest["--method"] == "patch" && got != want {
		return c, fmt.Errorf("a patch with the headers %q, want %s", got, want)
	}
	c.text = fmt.Sprintf("rest %s %s", rest["--method"], rest["--url"])
	return c, nil
}

// print writes the answer as --output says: none, or tsv, in which each element of a list is a line.
func (c call) print(answer json.RawMessage, out io.Writer) error {
	var data any
	if err := json.Unmarshal(answer, &data); err != nil {
		return err
	}
	if c.query != "" {
		var err error
		if data, err = jmespath.Search(c.query, data); err != nil {
			return fmt.Errorf("the query %s: %w", c.query, err)
		}
	}
	switch c.output {
	case "none":
		return nil
	case "tsv", "json":
	default:
		return fmt.Errorf("the output %q", c.output)
	}
	list, ok := data.([]any)
	if !ok {
		list = []any{data}
	}
	var lines bytes.Buffer
	for _, value := range list {
		switch value := value.(type) {
		case string:
			lines.WriteString(value)
		case bool:
			lines.WriteString(strconv.FormatBool(value))
		case float64:
			lines.WriteString(strconv.FormatFloat(value, 'f', -1, 64))
		default:
			return fmt.Errorf("the query %s gives %v, which az prints in a way of its own", c.query, data)
		}
		lines.WriteByte('\n')
	}
	_, err := lines.WriteTo(out)
	return err
}
