package secret

// Actor is how this product is named where the API server records who did something: the field manager of its
// writes, the value of the label app.kubernetes.io/managed-by, and the reporter of Events.
const Actor = "flux-token-refresher"

// ManagedByLabel stands, with the value Actor, only on Secrets that we created.
const ManagedByLabel = "app.kubernetes.io/managed-by"

// The annotations of a Secret. They are contract: users, dashboards and other versions of this product read them.
const (
	// ExpiresAt is the end of the token: RFC 3339, UTC.
	ExpiresAt = "flux-token-refresher/expires-at"
	// RefreshAt is when the next refresh is due: RFC 3339, UTC.
	RefreshAt = "flux-token-refresher/refresh-at"
	// RefreshedAt is since when the token can have stood there: RFC 3339, UTC. Events from before are about an earlier one.
	RefreshedAt = "flux-token-refresher/refreshed-at"
	// Reason is the refresh.Reason of the last write.
	Reason = "flux-token-refresher/reason"

	// TokenHash is refresh.Hash of the token.
	TokenHash = "flux-token-refresher/token-hash"
	// ContentHash is refresh.Format.ContentHash of all keys that we wrote.
	ContentHash = "flux-token-refresher/content-hash"
	// ConfigHash is refresh.Target.ConfigHash.
	ConfigHash = "flux-token-refresher/config-hash"

	// Request asks for a refresh with any value that is not the handled one.
	Request = "flux-token-refresher/request"
	// RequestContext is JSON of at most 1 KiB about the Request that it names.
	RequestContext = "flux-token-refresher/request-context"
	// HandledRequest is refresh.Hash of the last Request that was handled.
	HandledRequest = "flux-token-refresher/handled-request"
	// HandledOutcome is the refresh.Outcome of that Request.
	HandledOutcome = "flux-token-refresher/handled-outcome"

	// Suspend, with the value "true", means hands off.
	Suspend = "flux-token-refresher/suspend"
)
