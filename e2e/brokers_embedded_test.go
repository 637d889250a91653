//go:build !kafka

package e2e

import "testing"

func builtTargets(*testing.T) []target { return []target{embeddedTarget} }
