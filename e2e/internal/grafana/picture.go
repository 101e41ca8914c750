package grafana

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"flux-token-refresher/e2e/internal/prometheus"
)

// The picture, in pixels.
const (
	column     = 50 // of the grid
	line       = 34
	gap        = 4
	axis       = 52 // left of a diagram, for its scale
	headline   = 26
	legendLine = 16
)

// Draw writes an SVG of what the dashboard shows, without the rows that are collapsed: no more than what its panels are, plainly.
func (v View) Draw(ctx context.Context, d *Dashboard, file string) error {
	height := 0
	for _, p := range d.Panels {
		if !p.Collapsed {
			height = max(height, (p.GridPos.Y+p.GridPos.H)*line)
		}
	}
	var c canvas
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#24292e">`+"\n", 24*column, height)
	c.rect(0, 0, 24*column, float64(height), "#f4f5f5", "")
	for _, p := range d.Panels {
		if p.Collapsed {
			continue
		}
		if err := v.draw(ctx, &c, p); err != nil {
			return err
		}
	}
	c.printf("</svg>\n")
	return os.WriteFile(file, c.Bytes(), 0o644)
}

func (v View) draw(ctx context.Context, c *canvas, p Panel) error {
	g := p.GridPos
	area := box{float64(g.X * column), float64(g.Y * line), float64(g.W * column), float64(g.H * line)}
	if p.Type == "row" {
		c.text(area.x+8, area.y+22, "start", "bold", p.Title)
		return nil
	}
	area = box{area.x + gap, area.y + gap, area.w - 2*gap, area.h - 2*gap}
	c.rect(area.x, area.y, area.w, area.h, "#ffffff", "#d8d9da")
	c.text(area.x+8, area.y+18, "start", "bold", p.Title)
	area = box{area.x + 8, area.y + headline, area.w - 16, area.h - headline - 6}
	if p.Type == "text" {
		content, _ := p.Options["content"].(string)
		for i, text := range wrap(strings.ReplaceAll(content, "`", ""), int(area.w/6.2)) {
			c.text(area.x, area.y+14+float64(i)*15, "start", "normal", text)
		}
		return nil
	}
	answers, err := v.Ask(ctx, p)
	if err != nil {
		return err
	}
	switch p.Type {
	case "stat":
		c.stat(area, p, answers)
	case "table":
		c.table(area, p, answers)
	case "state-timeline":
		v.states(c, area, p, answers[0])
	case "heatmap":
		exemplars, err := v.Exemplars(ctx, p)
		if err != nil {
			return err
		}
		v.heatmap(c, area, answers[0], exemplars)
	case "timeseries":
		if p.FieldConfig.Defaults.Custom["drawStyle"] == "bars" {
			v.bars(c, area, p, answers[0])
		} else {
			v.lines(c, area, p, answers[0])
		}
	default:
		return fmt.Errorf("panel %q: nobody draws a %s here", p.Title, p.Type)
	}
	return nil
}

type box struct{ x, y, w, h float64 }

type canvas struct{ bytes.Buffer }

func (c *canvas) printf(format string, args ...any) { fmt.Fprintf(c, format, args...) }

func (c *canvas) rect(x, y, w, h float64, fill, stroke string) {
	c.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"`, x, y, w, h, fill)
	if stroke != "" {
		c.printf(` stroke="%s"`, stroke)
	}
	c.printf("/>\n")
}

func (c *canvas) text(x, y float64, anchor, weight, text string) {
	c.printf(`<text x="%.1f" y="%.1f" text-anchor="%s" font-weight="%s">`, x, y, anchor, weight)
	_ = xml.EscapeText(c, []byte(text)) // a buffer takes all
	c.printf("</text>\n")
}

func (c *canvas) stat(area box, p Panel, answers [][]prometheus.Series) {
	n, i := 0, 0
	for _, answer := range answers {
		n += len(answer)
	}
	for a, answer := range answers {
		for _, s := range answer {
			value := s.Points[len(s.Points)-1].Value
			part := box{area.x, area.y + float64(i)*area.h/float64(n), area.w, area.h/float64(n) - 4}
			c.rect(part.x, part.y, part.w, part.h, p.FieldConfig.Defaults.Thresholds.color(value), "")
			c.printf(`<g font-size="26">`)
			c.text(part.x+part.w/2, part.y+part.h/2+12, "middle", "bold", format(value, p.FieldConfig.Defaults.Unit))
			c.printf("</g>\n")
			c.text(part.x+part.w/2, part.y+part.h-8, "middle", "normal", p.Targets[a].Legend(s))
			i++
		}
	}
}

func (c *canvas) table(area box, p Panel, answers [][]prometheus.Series) {
	heads := []string{"namespace", "secret"}
	rows := map[[2]string][]string{}
	for i, answer := range answers {
		heads = append(heads, p.renamed("Value #"+p.Targets[i].RefID))
		for _, s := range answer {
			key := [2]string{s.Labels["namespace"], s.Labels["secret"]}
			for len(rows[key]) < i {
				rows[key] = append(rows[key], "")
			}
			unit := p.FieldConfig.Defaults.Unit
			if heads[i+2] == "failing" {
				unit = "none"
			}
			rows[key] = append(rows[key], format(s.Points[0].Value, unit))
		}
	}
	width := area.w / float64(len(heads))
	write := func(i int, weight string, cells []string) {
		for j, cell := range cells {
			c.text(area.x+float64(j)*width, area.y+18+float64(i)*24, "start", weight, cell)
		}
	}
	write(0, "bold", heads)
	keys := make([][2]string, 0, len(rows))
	for key := range rows {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for i, key := range keys {
		write(i+1, "normal", append(key[:], rows[key]...))
	}
}

// renamed is the name that a column gets.
func (p Panel) renamed(name string) string {
	for _, t := range p.Transformations {
		if names, ok := t.Options["renameByName"].(map[string]any); ok {
			if to, ok := names[name].(string); ok {
				return to
			}
		}
	}
	return name
}

// x is where a time lies.
func (v View) x(area box, at time.Time) float64 {
	return area.x + area.w*at.Sub(v.Start).Seconds()/v.End.Sub(v.Start).Seconds()
}

// frame draws the scales of a diagram, and gives what is left for it.
func (v View) frame(c *canvas, area box, low, high string, legends int) box {
	inner := box{area.x + axis, area.y + 4, area.w - axis, area.h - 22 - float64(legends)*legendLine}
	c.rect(inner.x, inner.y, inner.w, inner.h, "none", "#e4e5e6")
	c.text(inner.x-4, inner.y+11, "end", "normal", high)
	c.text(inner.x-4, inner.y+inner.h, "end", "normal", low)
	c.text(inner.x, inner.y+inner.h+14, "start", "normal", "0 s")
	c.text(inner.x+inner.w, inner.y+inner.h+14, "end", "normal", format(math.Round(v.End.Sub(v.Start).Seconds()), "s"))
	return inner
}

// legend names the series below a diagram, several to a line; it gives how many lines that took.
func legend(c *canvas, area box, names, colors []string) {
	lines := legendLines(area, names)
	y := area.y + area.h - float64(len(lines)-1)*legendLine - 2
	i := 0
	for _, n := range lines {
		x := area.x
		for range n {
			c.rect(x, y-8, 10, 8, colors[i], "")
			c.text(x+14, y, "start", "normal", names[i])
			x += 26 + 6.4*float64(len(names[i]))
			i++
		}
		y += legendLine
	}
}

// legendLines gives how many names stand in each line.
func legendLines(area box, names []string) []int {
	lines, x := []int{0}, 0.0
	for _, name := range names {
		width := 26 + 6.4*float64(len(name))
		if x+width > area.w && lines[len(lines)-1] > 0 {
			lines, x = append(lines, 0), 0
		}
		lines[len(lines)-1]++
		x += width
	}
	return lines
}

func (v View) lines(c *canvas, area box, p Panel, series []prometheus.Series) {
	high := 0.0
	names, colors := p.named(series)
	for _, s := range series {
		for _, point := range s.Points {
			high = max(high, point.Value)
		}
	}
	inner := v.frame(c, area, "0", format(high, p.FieldConfig.Defaults.Unit), len(legendLines(area, names)))
	for i, s := range series {
		c.printf(`<polyline fill="none" stroke-width="2" stroke="%s" points="`, colors[i])
		for _, point := range s.Points {
			c.printf("%.1f,%.1f ", v.x(inner, point.At), inner.y+inner.h*(1-point.Value/high))
		}
		c.printf("\"/>\n")
	}
	legend(c, area, names, colors)
}

func (v View) bars(c *canvas, area box, p Panel, series []prometheus.Series) {
	names, colors := p.named(series)
	stacks, high := map[time.Time]float64{}, 1.0
	for i, s := range series {
		sum := 0.0
		for _, point := range s.Points {
			stacks[point.At] += point.Value
			high = max(high, stacks[point.At])
			sum += point.Value
		}
		names[i] += " " + format(sum, "none")
	}
	inner := v.frame(c, area, "0", format(high, "none"), len(legendLines(area, names)))
	clear(stacks)
	width := max(4, inner.w*v.Step.Seconds()/v.End.Sub(v.Start).Seconds())
	for i, s := range series {
		for _, point := range s.Points {
			if point.Value == 0 {
				continue
			}
			h := inner.h * point.Value / high
			stacks[point.At] += h
			c.rect(v.x(inner, point.At)-width, inner.y+inner.h-stacks[point.At], width, h, colors[i], "")
		}
	}
	legend(c, area, names, colors)
}

func (v View) states(c *canvas, area box, p Panel, series []prometheus.Series) {
	slices.SortFunc(series, func(a, b prometheus.Series) int { return cmp.Compare(p.Targets[0].Legend(a), p.Targets[0].Legend(b)) })
	height := (area.h - 24) / float64(len(series))
	const names = 100
	for i, s := range series {
		y := area.y + float64(i)*height
		c.text(area.x, y+height/2+4, "start", "normal", p.Targets[0].Legend(s))
		inner := box{area.x + names, y, area.w - names, height}
		for _, point := range s.Points {
			fill := "#ececec"
			if point.Value == 1 {
				fill = hex("green")
			}
			c.rect(v.x(inner, point.At)-inner.w*v.Step.Seconds()/v.End.Sub(v.Start).Seconds(), y+3, inner.w*v.Step.Seconds()/v.End.Sub(v.Start).Seconds()+.5, height-6, fill, "")
		}
	}
	c.text(area.x+names, area.y+area.h-6, "start", "normal", "0 s")
	c.text(area.x+area.w, area.y+area.h-6, "end", "normal", format(math.Round(v.End.Sub(v.Start).Seconds()), "s"))
}

func (v View) heatmap(c *canvas, area box, series []prometheus.Series, exemplars []prometheus.Exemplar) {
	bound := func(s prometheus.Series) float64 {
		le, err := strconv.ParseFloat(s.Labels["le"], 64)
		if err != nil {
			return math.NaN()
		}
		return le
	}
	slices.SortFunc(series, func(a, b prometheus.Series) int { return cmp.Compare(bound(a), bound(b)) })
	inner := v.frame(c, area, "0", "∞", 0)
	height := inner.h / float64(len(series))
	width := max(4, inner.w*v.Step.Seconds()/v.End.Sub(v.Start).Seconds())
	below := map[time.Time]float64{}
	for i, s := range series {
		y := inner.y + inner.h - float64(i+1)*height
		if i%2 == 1 && i < len(series)-2 { // the last one is infinity
			c.text(inner.x-4, y+4, "end", "normal", format(bound(s), "s"))
		}
		for _, point := range s.Points {
			if n := point.Value - below[point.At]; n > 0 {
				c.rect(v.x(inner, point.At)-width, y, width, height, []string{"#fdd49e", "#fc8d59", "#d7301f"}[min(2, int(n)-1)], "")
			}
			below[point.At] = point.Value
		}
	}
	for _, e := range exemplars {
		i := slices.IndexFunc(series, func(s prometheus.Series) bool { return e.Point.Value <= bound(s) })
		c.printf(`<circle cx="%.1f" cy="%.1f" r="3" fill="#1f60c4"/>`+"\n", v.x(inner, e.Point.At), inner.y+inner.h-(float64(i)+.5)*height)
	}
}

// named gives the names of series and their colors: those of the panel's overrides, or of a palette.
func (p Panel) named(series []prometheus.Series) (names, colors []string) {
	palette := []string{"green", "yellow", "blue", "orange", "red", "purple"}
	for i, s := range series {
		name := p.Targets[0].Legend(s)
		fill := palette[i%len(palette)]
		for _, o := range p.FieldConfig.Overrides {
			var fixed struct {
				FixedColor string `json:"fixedColor"`
			}
			if o.Matcher.Options == name && json.Unmarshal(o.Properties[0].Value, &fixed) == nil {
				fill = fixed.FixedColor
			}
		}
		names, colors = append(names, name), append(colors, hex(fill))
	}
	return names, colors
}

func (t *Thresholds) color(value float64) string {
	fill := ""
	for _, step := range t.Steps {
		if step.Value == nil || value >= *step.Value {
			fill = step.Color
		}
	}
	return hex(fill)
}

func hex(name string) string {
	return map[string]string{
		"green": "#73bf69", "yellow": "#f2cc0c", "blue": "#5794f2", "orange": "#ff9830", "red": "#f2495c", "dark-red": "#c4162a", "purple": "#b877d9",
	}[name]
}

// format writes a value as a person does.
func format(value float64, unit string) string {
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
	switch {
	case unit != "s" || value == 0:
		return number(value)
	case math.Abs(value) < 1:
		return number(value*1000) + " ms"
	case math.Abs(value) < 100:
		return number(value) + " s"
	default:
		return number(value/60) + " min"
	}
}

// wrap breaks text into lines of so many characters.
func wrap(text string, width int) []string {
	var lines []string
	for paragraph := range strings.SplitSeq(text, "\n") {
		current := ""
		for word := range strings.FieldsSeq(paragraph) {
			if current != "" && len(current)+1+len(word) > width {
				lines, current = append(lines, current), ""
			}
			current = strings.TrimSpace(current + " " + word)
		}
		lines = append(lines, current)
	}
	return lines
}
