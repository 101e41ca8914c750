// azidentity's spans, without what Entra answered.

package azure

import (
	sdktracing "github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/Azure/azure-sdk-for-go/sdk/tracing/azotel"
	"go.opentelemetry.io/otel/trace"

	"flux-token-refresher/internal/outbound"
)

// tracing gives azidentity's spans a place below the caller's.
func tracing(provider trace.TracerProvider) sdktracing.Provider {
	return azotel.NewTracingProvider(outbound.Quiet(provider), nil)
}
