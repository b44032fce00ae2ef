// Command performance runs the benchmarks and prints the table of
// docs/performance.md.
package main

func main() {}
