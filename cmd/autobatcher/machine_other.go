//go:build !linux && !darwin

package main

// machineMemory returns the memory of the machine in bytes, 0 if unknown.
func machineMemory() int64 { return 0 }
