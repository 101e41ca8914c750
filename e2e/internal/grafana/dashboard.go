// Package grafana reads a dashboard as Grafana does, asks what its panels ask, and draws what they show.
package grafana

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Dashboard is the JSON of a dashboard: those fields of Grafana's schema (kinds/dashboard/dashboard_kind.cue of its repository, schemaVersion
// 39, of Grafana 11) that ours has. Load refuses others.
type Dashboard struct {
	UID           string   `json:"uid"`
	Title         string   `json:"title"`
	Description   string   `json:"description"`
	Tags          []string `json:"tags"`
	SchemaVersion uint16   `json:"schemaVersion"`
	Editable      bool     `json:"editable"`
	GraphTooltip  int      `json:"graphTooltip"`
	Timezone      string   `json:"timezone"`
	Refresh       string   `json:"refresh"`
	Time          struct {
		From string `json:"from"`
		To   string `json:"to"`
	} `json:"time"`
	Timepicker struct{} `json:"timepicker"`
	// FiscalYearStartMonth is 0 for January.
	FiscalYearStartMonth uint8      `json:"fiscalYearStartMonth"`
	WeekStart            string     `json:"weekStart"`
	Links                []struct{} `json:"links"`
	Annotations          struct {
		List []struct{} `json:"list"`
	} `json:"annotations"`
	Templating struct {
		List []Variable `json:"list"`
	} `json:"templating"`
	Panels []Panel `json:"panels"`
}

// Variable is one that the reader of a dashboard chooses.
type Variable struct {
	Type       string      `json:"type"` // datasource | query
	Name       string      `json:"name"`
	Label      string      `json:"label"`
	Datasource *Datasource `json:"datasource"`
	Definition string      `json:"definition"`
	// Query is a plugin's id for a datasource, and an object for a query.
	Query      json.RawMessage `json:"query"`
	Regex      string          `json:"regex"`
	Hide       int             `json:"hide"`
	Refresh    int             `json:"refresh"`
	Sort       int             `json:"sort"`
	Multi      bool            `json:"multi"`
	IncludeAll bool            `json:"includeAll"`
	AllValue   string          `json:"allValue"`
	Options    []struct{}      `json:"options"`
	Current    json.RawMessage `json:"current"`
}

// Datasource is the one that a panel asks.
type Datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// Panel is one, or a row of them.
type Panel struct {
	ID          uint32      `json:"id"`
	Type        string      `json:"type"`
	Title       string      `json:"title"`
	Description string      `json:"description"`
	Datasource  *Datasource `json:"datasource"`
	GridPos     GridPos     `json:"gridPos"`
	Interval    string      `json:"interval"`
	Targets     []Target    `json:"targets"`
	FieldConfig FieldConfig `json:"fieldConfig"`
	// Options are the panel plugin's own.
	Options         map[string]any `json:"options"`
	Transformations []struct {
		ID      string         `json:"id"`
		Options map[string]any `json:"options"`
	} `json:"transformations"`

	// Of a row. The panels of one that is collapsed are in it, those of another follow it.
	Collapsed bool    `json:"collapsed"`
	Panels    []Panel `json:"panels"`
}

// GridPos is a place on a grid of 24 columns.
type GridPos struct {
	X int `json:"x"`
	Y int `json:"y"`
	W int `json:"w"`
	H int `json:"h"`
}

// Target is a query.
type Target struct {
	Datasource   Datasource `json:"datasource"`
	RefID        string     `json:"refId"`
	EditorMode   string     `json:"editorMode"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	Instant      bool       `json:"instant"`
	Range        bool       `json:"range"`
	Format       string     `json:"format"`
	Exemplar     bool       `json:"exemplar"`

	// Of a search for traces: Tempo's query, or Jaeger's service and operation.
	QueryType string `json:"queryType"`
	Query     string `json:"query"`
	TableType string `json:"tableType"`
	Service   string `json:"service"`
	Operation string `json:"operation"`
	Limit     int    `json:"limit"`
}

// FieldConfig is how values are shown.
type FieldConfig struct {
	Defaults struct {
		Unit       string         `json:"unit"`
		Min        *float64       `json:"min"`
		Decimals   *int           `json:"decimals"`
		Color      map[string]any `json:"color"`
		Thresholds *Thresholds    `json:"thresholds"`
		Mappings   []struct {
			Type    string         `json:"type"`
			Options map[string]any `json:"options"`
		} `json:"mappings"`
		// Custom are the panel plugin's own.
		Custom map[string]any `json:"custom"`
	} `json:"defaults"`
	Overrides []struct {
		Matcher struct {
			ID      string `json:"id"`
			Options string `json:"options"`
		} `json:"matcher"`
		Properties []struct {
			ID    string          `json:"id"`
			Value json.RawMessage `json:"value"`
		} `json:"properties"`
	} `json:"overrides"`
}

// Thresholds give a value its color: that of the last step that is not above it.
type Thresholds struct {
	Mode  string `json:"mode"`
	Steps []struct {
		Color string   `json:"color"`
		Value *float64 `json:"value"`
	} `json:"steps"`
}

// Load reads a dashboard, and refuses what Grafana would not show as it is meant.
func Load(file string) (*Dashboard, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := &Dashboard{}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(d); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

// All gives the panels that are no rows, also those of rows that are collapsed.
func (d *Dashboard) All() []Panel {
	var all []Panel
	for _, p := range d.Panels {
		if p.Type != "row" {
			all = append(all, p)
		}
		all = append(all, p.Panels...)
	}
	return all
}

// Asking gives the panels that ask data sources of a type.
func (d *Dashboard) Asking(datasource string) []Panel {
	return slices.DeleteFunc(d.All(), func(p Panel) bool { return p.Datasource == nil || p.Datasource.Type != datasource })
}

func (d *Dashboard) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if d.UID == "" || len(d.UID) > 40 || d.Title == "" || d.SchemaVersion != 39 {
		wrong("uid %q, title %q, schemaVersion %d", d.UID, d.Title, d.SchemaVersion)
	}
	known := map[string]string{} // variables, with the plugins of those that are data sources
	for _, v := range d.Templating.List {
		known[v.Name] = strings.Trim(string(v.Query), `"`)
	}
	ids, cells := map[uint32]bool{}, map[[2]int]string{}
	for _, p := range append(d.All(), d.rows()...) {
		if p.ID == 0 || ids[p.ID] {
			wrong("panel %q: its id %d is another's", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.W < 1 || p.GridPos.H < 1 || p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 {
			wrong("panel %q: it lies at %+v", p.Title, p.GridPos)
		}
		if p.Type == "row" || p.Type == "text" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 || p.Datasource == nil {
			wrong("panel %q: no description, query or data source", p.Title)
			continue
		}
		refs := map[string]bool{}
		for _, t := range p.Targets {
			if refs[t.RefID] || t.RefID == "" {
				wrong("panel %q: two queries %q", p.Title, t.RefID)
			}
			refs[t.RefID] = true
			if name := strings.Trim(t.Datasource.UID, "${}"); t.Datasource != *p.Datasource || known[name] != t.Datasource.Type {
				wrong("panel %q: its data source %v is no variable of that type", p.Title, t.Datasource)
			}
		}
	}
	for _, p := range d.Panels {
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := cells[cell]; other != "" {
					wrong("panel %q lies on %q", p.Title, other)
				}
				cells[cell] = p.Title
			}
		}
	}
	return errors.Join(errs...)
}

func (d *Dashboard) rows() []Panel {
	var rows []Panel
	for _, p := range d.Panels {
		if p.Type == "row" {
			rows = append(rows, p)
		}
	}
	return rows
}
