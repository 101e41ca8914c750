package refreshtest

import (
	"bytes"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// What follows is the part of kube-apiserver's field management that a Secret needs. Its own library,
// apimachinery's managedfields, takes eight times as long (measured with -race): too long for simulations of days.

// field is one value of a Secret that a field manager can own.
type field struct {
	labels, annotations bool // neither: data
	key                 string
}

func (f field) path() fieldpath.Path {
	switch {
	case f.labels:
		return fieldpath.MakePathOrDie("metadata", "labels", f.key)
	case f.annotations:
		return fieldpath.MakePathOrDie("metadata", "annotations", f.key)
	default:
		return fieldpath.MakePathOrDie("data", f.key)
	}
}

func (f field) remove(s *corev1.Secret) {
	switch {
	case f.labels:
		delete(s.Labels, f.key)
	case f.annotations:
		delete(s.Annotations, f.key)
	default:
		delete(s.Data, f.key)
	}
}

// fields gives all values of a Secret.
func fields(s *corev1.Secret) map[field]string {
	all := map[field]string{}
	for key, value := range s.Labels {
		all[field{labels: true, key: key}] = value
	}
	for key, value := range s.Annotations {
		all[field{annotations: true, key: key}] = value
	}
	for key, value := range s.Data {
		all[field{key: key}] = string(value)
	}
	return all
}

// own gives to manager what it wrote with this operation, and takes from all others what it changed or removed.
func own(s *corev1.Secret, manager string, operation metav1.ManagedFieldsOperationType, owned, taken *fieldpath.Set) {
	s.ManagedFields = slices.DeleteFunc(s.ManagedFields, func(entry metav1.ManagedFieldsEntry) bool {
		return entry.Manager == manager && entry.Operation == operation
	})
	for i := range s.ManagedFields {
		entry := &s.ManagedFields[i]
		entry.FieldsV1 = encode(decode(entry.FieldsV1).Difference(taken))
	}
	s.ManagedFields = slices.DeleteFunc(s.ManagedFields, func(entry metav1.ManagedFieldsEntry) bool {
		return decode(entry.FieldsV1).Empty()
	})
	if !owned.Empty() {
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		s.ManagedFields = append(s.ManagedFields, metav1.ManagedFieldsEntry{
			Manager: manager, Operation: operation, APIVersion: "v1", Time: &now, FieldsType: "FieldsV1", FieldsV1: encode(owned),
		})
	}
}

// owned is what manager owns by this operation.
func owned(s *corev1.Secret, manager string, operation metav1.ManagedFieldsOperationType) *fieldpath.Set {
	for _, entry := range s.ManagedFields {
		if entry.Manager == manager && entry.Operation == operation {
			return decode(entry.FieldsV1)
		}
	}
	return fieldpath.NewSet()
}

func decode(f *metav1.FieldsV1) *fieldpath.Set {
	set := fieldpath.NewSet()
	if err := set.FromJSON(bytes.NewReader(f.Raw)); err != nil {
		panic(err) // only what encode wrote comes here
	}
	return set
}

func encode(set *fieldpath.Set) *metav1.FieldsV1 {
	raw, err := set.ToJSON()
	if err != nil {
		panic(err) // paths of strings always encode
	}
	return &metav1.FieldsV1{Raw: raw}
}

// apply merges desired into live as a forced server-side apply does: what manager applied earlier and leaves out
// now is removed, unless somebody else owns it too.
func apply(live, desired *corev1.Secret, manager string) *corev1.Secret {
	before, wanted := fields(live), fields(desired)
	set, taken := fieldpath.NewSet(), fieldpath.NewSet()
	for f, value := range wanted {
		set.Insert(f.path())
		if was, ok := before[f]; !ok || was != value {
			taken.Insert(f.path())
		}
	}
	after := live.DeepCopy()
	dropped := owned(live, manager, metav1.ManagedFieldsOperationApply).Difference(set)
	own(after, manager, metav1.ManagedFieldsOperationApply, set, taken)
	for f := range before {
		if dropped.Has(f.path()) && !slices.ContainsFunc(after.ManagedFields, func(entry metav1.ManagedFieldsEntry) bool {
			return decode(entry.FieldsV1).Has(f.path())
		}) {
			f.remove(after)
		}
	}
	for key, value := range desired.Data {
		if after.Data == nil {
			after.Data = map[string][]byte{}
		}
		after.Data[key] = value
	}
	for key, value := range desired.Annotations {
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, key, value)
	}
	for key, value := range desired.Labels {
		metav1.SetMetaDataLabel(&after.ObjectMeta, key, value)
	}
	return after
}

// update notes who changed live into after, as for every write that is no apply.
func update(live, after *corev1.Secret, manager string) {
	before, now := fields(live), fields(after)
	owns := owned(live, manager, metav1.ManagedFieldsOperationUpdate)
	taken := fieldpath.NewSet()
	for f, value := range now {
		if was, ok := before[f]; !ok || was != value {
			owns.Insert(f.path())
			taken.Insert(f.path())
		}
	}
	for f := range before {
		if _, ok := now[f]; !ok {
			taken.Insert(f.path())
			owns = owns.Difference(fieldpath.NewSet(f.path()))
		}
	}
	own(after, manager, metav1.ManagedFieldsOperationUpdate, owns, taken)
}
