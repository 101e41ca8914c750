package config

// From YAML nodes to Go values: strict, and with the line of everything that is said, so that whatever is found wrong
// later can be pointed at.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// A decoder fills values from nodes. It goes on after a problem, so that all are found at once.
type decoder struct {
	// lines holds where each field stands that the file sets, by its path (targets[0].secret).
	lines    map[string]int
	problems []Problem
}

// decode reads the one document of data into the struct that into points to. It is not ok when there is nothing in it
// that could be looked at further.
func decode(data []byte, into any) (d *decoder, ok bool) {
	d = &decoder{lines: map[string]int{"": 1}}
	if len(data) > maxSize {
		d.failf("", "is larger than %d bytes; that is no configuration file", maxSize)
		return d, false
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		d.syntax(err)
		return d, false
	}
	var document, another yaml.Node
	if err := loader.Load(&document); err != nil && !errors.Is(err, io.EOF) {
		d.syntax(err)
		return d, false
	}
	if len(document.Content) == 0 || document.Content[0].ShortTag() == "!!null" {
		d.failf("", "is empty; start with apiVersion: %s and kind: %s", apiVersion, kind)
		return d, false
	}
	root := document.Content[0]
	d.object(root, "", reflect.ValueOf(into).Elem())
	if err := loader.Load(&another); err == nil {
		d.failAt(another.Line, "", "a second document starts here; one file holds one configuration")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	return d, root.Kind == yaml.MappingNode && !d.full()
}

func (d *decoder) syntax(err error) {
	line, text := 1, err.Error()
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		line, text = max(1, e.Mark.Line), e.Message
	}
	d.failAt(line, "", "not YAML: %s", text)
}

// set tells whether the file says anything at path.
func (d *decoder) set(path string) bool {
	_, ok := d.lines[path]
	return ok
}

// line is where path stands, or what it is missing from.
func (d *decoder) line(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

func (d *decoder) failf(path, format string, args ...any) {
	d.failAt(d.line(path), path, format, args...)
}

func (d *decoder) failAt(line int, path, format string, args ...any) {
	if d.full() {
		return
	}
	d.problems = append(d.problems, Problem{Line: line, Field: path, Text: fmt.Sprintf(format, args...)})
}

// full tells whether enough is wrong to stop looking.
func (d *decoder) full() bool { return len(d.problems) == maxProblems }

// object fills a struct; n is nil when the file does not speak of it.
func (d *decoder) object(n *yaml.Node, path string, into reflect.Value) {
	if t, ok := reflect.TypeAssert[interface{ setDefaults() }](into.Addr()); ok {
		t.setDefaults()
	}
	values := map[string]*yaml.Node{}
	fields := fieldNames(into.Type())
	for _, e := range d.entries(n, path) {
		if !slices.Contains(fields, e.key) {
			d.failf(join(path, e.key), "is not a known field; %s", suggest(e.key, fields))
			continue
		}
		values[e.key] = e.value
	}
	for i, name := range fields {
		value, at := values[name], join(path, name)
		if value == nil || value.ShortTag() == "!!null" {
			delete(d.lines, at)
			if into.Field(i).Kind() == reflect.Struct {
				d.object(nil, at, into.Field(i))
			}
			continue
		}
		d.value(value, at, into.Field(i))
	}
}

func (d *decoder) value(n *yaml.Node, path string, into reflect.Value) {
	switch into.Kind() {
	case reflect.Struct:
		d.object(n, path, into)
	case reflect.Slice:
		d.list(n, path, into)
	case reflect.Map:
		d.strings(n, path, into)
	default:
		d.scalar(n, path, into)
	}
}

func (d *decoder) list(n *yaml.Node, path string, into reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.failf(path, "is %s; write a list", describe(n))
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(n.Content), len(n.Content)))
	for i, element := range n.Content {
		if d.full() {
			return
		}
		at := fmt.Sprintf("%s[%d]", path, i)
		d.lines[at] = element.Line
		d.value(element, at, into.Index(i))
	}
}

// strings fills a map of strings, whose keys the user chooses.
func (d *decoder) strings(n *yaml.Node, path string, into reflect.Value) {
	into.Set(reflect.MakeMap(into.Type()))
	for _, e := range d.entries(n, path) {
		if e.value.Kind != yaml.ScalarNode || e.value.ShortTag() != "!!str" {
			d.failf(join(path, e.key), "is %s; write a string, in quotes", describe(e.value))
			continue
		}
		into.SetMapIndex(reflect.ValueOf(e.key), reflect.ValueOf(e.value.Value))
	}
}

// An entry is a field of a mapping.
type entry struct {
	key   string
	value *yaml.Node
}

// entries gives the fields of a mapping in their order, and notes their lines.
func (d *decoder) entries(n *yaml.Node, path string) []entry {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		d.failf(path, "is %s; write fields (name: value)", describe(n))
		return nil
	}
	var out []entry
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			d.failAt(key.Line, path, "has %s for the name of a field; write a plain name", describe(key))
			continue
		}
		at := join(path, key.Value)
		if line, again := first[key.Value]; again {
			d.failAt(key.Line, at, "is set twice; it stands in line %d already", line)
			continue
		}
		first[key.Value], d.lines[at] = key.Line, key.Line
		out = append(out, entry{key: key.Value, value: value})
	}
	return out
}

func (d *decoder) scalar(n *yaml.Node, path string, into reflect.Value) {
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		tag = ""
	}
	switch v := into.Addr().Interface().(type) {
	case *string:
		switch {
		case tag == "!!str" && n.Value == "":
			d.failf(path, "is empty; write a value or leave the field out")
		case tag == "!!str":
			*v = n.Value
		case tag == "":
			d.failf(path, "is %s; write a string", describe(n))
		default:
			d.failf(path, "is %s; write a string, in quotes", describe(n))
		}
	case *bool:
		if tag != "!!bool" {
			d.failf(path, "is %s; write true or false", describe(n))
			return
		}
		*v = strings.EqualFold(n.Value, "true")
	case *float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || tag != "!!float" && tag != "!!int" {
			d.failf(path, "is %s; write a number like 0.75", describe(n))
			return
		}
		*v = f
	case *time.Duration:
		t, err := time.ParseDuration(n.Value)
		if err != nil || tag != "!!str" && tag != "!!int" {
			d.failf(path, "is %s, which is no duration; write it with units, like 90s or 1h30m", describe(n))
			return
		}
		*v = t
	}
}

// describe says what a node is; its value only where that is short and no string, which could be something
// that somebody put into the wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.AliasNode:
		return "an alias, which this file may not have"
	case yaml.MappingNode:
		return "a set of fields"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag := n.ShortTag(); tag {
	case "!!str":
		return "a string"
	case "!!null":
		return "empty"
	case "!!int", "!!float", "!!bool":
		return "the plain value " + quote(n.Value)
	case "!!timestamp":
		return "a date"
	case "!!merge":
		return "a merge key, which this file may not have,"
	default:
		return "a value of the type " + quote(tag)
	}
}

// fieldNames are the names of t's fields as the file has them, in their order.
func fieldNames(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}

func join(path, key string) string {
	if len(key) > 63 || strings.ContainsFunc(key, func(r rune) bool { return !strconv.IsPrint(r) }) {
		key = quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// quote shows a value, not more than the start of it.
func quote(s string) string {
	if len(s) > 100 {
		return strconv.Quote(strings.ToValidUTF8(s[:100], "")) + "…"
	}
	return strconv.Quote(s)
}
