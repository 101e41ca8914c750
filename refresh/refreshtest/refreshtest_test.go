package refreshtest_test

import (
	"testing"

	"go.uber.org/goleak"

	"flux-token-refresher/refresh/refreshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStoreInMemory(t *testing.T) {
	t.Parallel()
	refreshtest.StoreTest(t, func(*testing.T) refreshtest.Env {
		store := refreshtest.NewStore()
		return refreshtest.Env{Store: store, Hands: store, Namespace: "ns"}
	})
}
