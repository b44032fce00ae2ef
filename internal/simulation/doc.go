// Package simulation plays what may happen to a fleet of processes in months
// within a second: random schedules of calls, retries, crashes, restarts, and
// faults of the network, the provider and the journal, over hours of virtual time.
// After each schedule the simulation checks what must always hold; check_test.go
// lists the checks and their exceptions.
//
// The package consists of tests. They play a number of schedules, on all
// processors:
//
//	go test ./internal/simulation -run 'TestSimulation$' -seeds 1000
//
// A schedule follows from its seed, except for the order in which goroutines run
// that are ready at the same instant. Command machine plays schedules exactly, each
// in a WebAssembly machine with one processor, whose clock and random numbers
// follow from the seed. A schedule that fails there fails again.
//
//	go run ./internal/simulation/machine -seeds 1000
//	go run ./internal/simulation/machine -seed 28
//
// The second command prints the whole log of one schedule.
//
// The flag -draws selects the kinds of trouble beyond the basic faults; see
// draws_test.go. The flags -sqlite and -postgres keep journals in databases instead
// of in memory. Command mutants tests the simulation with deliberate bugs.
package simulation
