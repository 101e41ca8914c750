// The log of the Azure SDK stays closed.

package azure

import "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"

// With AZURE_SDK_GO_LOGGING=all the SDK gives itself a listener when it is loaded and prints to stderr,
// azidentity's errors with the whole answer of Entra among it. Only an init comes after that and before any
// use; SetListener is not safe at any other time.
func init() { log.SetListener(nil) }
