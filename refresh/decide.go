package refresh

// Reason is why a reconciliation does something, or why it waits.
type Reason string

const (
	// SecretMissing: the Secret does not exist; it is created where the target allows it, else waited for.
	SecretMissing Reason = "SecretMissing"
	// Suspended: the Secret's owner said hands off; it is waited for.
	Suspended Reason = "Suspended"
	// Refused: the Secret can never take the token as it is; it is waited for.
	Refused Reason = "Refused"
	// Adopted: a credential that is not ours stands there.
	Adopted Reason = "Adopted"
	// ConfigChanged: it was written for another tenant, client, scope or format.
	ConfigChanged Reason = "ConfigChanged"
	// TokenMissing: a key of the target is missing or empty.
	TokenMissing Reason = "TokenMissing"
	// TokenAltered: what stands there is not what we wrote.
	TokenAltered Reason = "TokenAltered"
	// TokenExpired: the token's end has passed.
	TokenExpired Reason = "TokenExpired"
	// RefreshRequested: a request is open.
	RefreshRequested Reason = "RefreshRequested"
	// RefreshDue: the time to refresh has come, or what the annotations say of it cannot be true.
	RefreshDue Reason = "RefreshDue"
)
