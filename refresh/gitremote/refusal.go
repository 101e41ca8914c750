// What a refusal most likely means, and what mends it.

package gitremote

import (
	"bytes"
	"net/http"
)

const (
	organization = "most likely the organization does not know the identity: add it to the organization's users, and see that the " +
		"organization is connected to the identity's tenant"
	permission = "most likely the identity lacks permission: give it read on the project and the repository"
	licence    = "the repository is not there, or the identity may not see it: most likely it has the licence Stakeholder, which sees no " +
		"repository (give it Basic), or lacks read on the project; else compare the URL"
	conditional = "a Conditional Access policy of the organization's tenant does not let the identity in: exclude it, or the cluster's addresses"
	location    = "most likely the URL names a project or repository that is not there; else the identity lacks read on the project"
)

// byKind is what a refusal means that comes without a code.
var byKind = map[Kind]string{
	SignIn:       organization,
	Page:         organization,
	Unauthorized: organization,
	Forbidden:    permission,
	NotFound:     location,
}

// byCode are the codes of Azure DevOps that say more than the status. One without a meaning says nothing of the token.
var byCode = []struct{ code, meaning string }{
	{"TF400813", organization}, // the user is not authorized to access this resource
	{"VS30063", organization},  // you are not authorized to access the organization
	{"TF401444", organization}, // sign in at least once in a browser
	{"VS403463", conditional},  // the conditional access policy has failed
	{"TF400733", ""},           // the request was canceled: too much use of a resource
	{"TF401019", licence},      // the Git repository does not exist, or no permission
	{"TF401027", permission},   // you need the Git 'GenericRead' permission
	{"TF200016", location},     // the project does not exist
	{"VS800075", location},     // the project does not exist, or no permission
}

// explain gives the code that stands first, if there is one that is known. Azure DevOps repeats its message in a header, where it is found
// when pages of HTML come before it in the body.
func explain(kind Kind, header http.Header, body []byte) (code, meaning string) {
	meaning = byKind[kind]
	for _, text := range [][]byte{[]byte(header.Get("X-TFS-ServiceError")), body} {
		first := len(text)
		for _, known := range byCode {
			if i := bytes.Index(text[:first], []byte(known.code)); i >= 0 {
				first, code, meaning = i, known.code, known.meaning
			}
		}
		if code != "" {
			break
		}
	}
	return code, meaning
}
