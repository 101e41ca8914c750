// Tokens of whoever is logged in to az, on a developer's machine.

package azure

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"flux-token-refresher/refresh"
)

func openAzureCLI(a *attempt) (azcore.TokenCredential, error) {
	if _, err := exec.LookPath("az"); err != nil {
		return nil, a.id.fail(refresh.Misconfigured, "there is no az in PATH; azureCLI is for a developer's machine, and the image has none")
	}
	cred, err := azidentity.NewAzureCLICredential(&azidentity.AzureCLICredentialOptions{TenantID: a.id.TenantID})
	if err != nil {
		return nil, a.id.fail(refresh.Misconfigured, fmt.Sprintf("tenant %s is malformed", shown(a.id.TenantID)))
	}
	return cred, nil
}

var aadsts = regexp.MustCompile(`\bAADSTS([0-9]{4,8})\b`)

// cliFailure says of what az wrote, which can be anything, no more than a code of Entra's.
func cliFailure(ctx context.Context, a *attempt, err error) *refresh.Error {
	if ctx.Err() != nil {
		return a.id.fail(refresh.Unavailable, fmt.Sprintf("az did not answer within %s", a.timeout))
	}
	said, login := err.Error(), "az login"
	if a.id.TenantID != "" {
		login += " --tenant " + shown(a.id.TenantID)
	}
	var codes []int
	for _, match := range aadsts.FindAllStringSubmatch(said, -1) {
		if n, err := strconv.Atoi(match[1]); err == nil {
			codes = append(codes, n)
		}
	}
	code, m, known := entraCode(codes, entraCodes)
	var failure *refresh.Error
	switch {
	case known && m.class != refresh.Misconfigured:
		failure = a.id.fail(m.class, a.sentence(m.remedy))
	case code != "" || strings.Contains(said, "az login"):
		failure = a.id.fail(refresh.Misconfigured, fmt.Sprintf("az has no login that serves scope %s; run %s", shown(a.scope), login))
	default:
		failure = a.id.fail(refresh.Misconfigured, fmt.Sprintf("az gave no token; see what az account get-access-token says, and run %s", login))
	}
	failure.Code = code
	return failure
}
