// Package loopback finds ports for servers that must know theirs before they listen.
package loopback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Address gives a free address 127.0.0.1:PORT. The port is below the range that the kernel hands out to outgoing connections
// (from 32768 on Linux): nobody takes it while its server is down, and a client that keeps dialing it never
// connects to itself.
func Address() (string, error) {
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		return address, listener.Close()
	}
	return "", errors.New("no free port on 127.0.0.1")
}
