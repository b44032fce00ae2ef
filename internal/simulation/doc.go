// Package simulation plays what may happen to a fleet in months within a
// second: random schedules of calls, retries, crashes, restarts and troubles of
// the network, the provider and the journal, over hours of virtual time. After
// each it checks what must always hold.
//
// It is all tests. They play a number of schedules, on all processors:
//
//	go test ./internal/simulation -run 'TestSimulation$' -seeds 1000
//
// What a schedule is follows from its seed, but for one thing: which of the
// goroutines that are ready at the same instant runs first. In a machine of
// their own (a WebAssembly one, of a single processor, whose clock and chance
// follow from the seed) schedules are played exactly: a seed that fails fails
// again, to the letter.
//
//	go run ./internal/simulation/machine -seeds 1000
//	go run ./internal/simulation/machine -seed 28
//
// The second tells the whole story of one.
package simulation
