// The kinds of Flux's objects that read a Secret, and how.

package flux

import "slices"

// kind is a row of the table that says whose Secret an event is about, and who has to be woken.
type kind struct {
	group, name string
	// bySource: it names no Secret itself (spec.secretRef), but a source (spec.sourceRef) of one of these kinds.
	bySource []string
	// git: it reads a Git repository at spec.url, so that its server can be asked about a token.
	git bool
}

const (
	sourceGroup = "source.toolkit.fluxcd.io"
	imageGroup  = "image.toolkit.fluxcd.io"
)

// kinds have no versions: which one is served is discovered. Both references stay within a namespace, like the rights and the
// senders' namespaces do. ImageUpdateAutomation can name a source in another one; that source tells of its Secret itself.
var kinds = []*kind{
	{group: sourceGroup, name: "GitRepository", git: true},
	{group: sourceGroup, name: "OCIRepository"},
	{group: sourceGroup, name: "HelmRepository"},
	{group: sourceGroup, name: "Bucket"},
	{group: sourceGroup, name: "HelmChart", bySource: []string{"HelmRepository", "GitRepository", "Bucket"}},
	{group: imageGroup, name: "ImageRepository"},
	{group: imageGroup, name: "ImageUpdateAutomation", bySource: []string{"GitRepository"}},
}

// kindOf gives the row of a kind, nil when it reads no Secret of ours.
func kindOf(group, name string) *kind {
	i := slices.IndexFunc(kinds, func(k *kind) bool { return k.group == group && k.name == name })
	if i < 0 {
		return nil
	}
	return kinds[i]
}

// sourceOf gives the kind of what o names in spec.sourceRef, nil when that cannot lead to a Secret of its namespace.
func (k *kind) sourceOf(o *object) *kind {
	if !slices.Contains(k.bySource, o.source.Kind) || o.source.Namespace != "" && o.source.Namespace != o.namespace {
		return nil
	}
	return kindOf(sourceGroup, o.source.Kind)
}
