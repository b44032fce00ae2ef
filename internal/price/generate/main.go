// Generate makes the built-in price table from LiteLLM's public price map, which
// the PyPI package litellm contains:
//
//	pip download --no-deps litellm
//	unzip -j litellm-*.whl litellm/model_prices_and_context_window_backup.json
//	go run ./internal/price/generate -o internal/price/prices.tsv model_prices_and_context_window_backup.json
package main

import (
	"flag"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/price"
)

func main() {
	out := flag.String("o", "prices.tsv", "the table to write")
	date := flag.String("date", time.Now().UTC().Format(time.DateOnly), "the date of the prices")
	flag.Parse()
	name := "model_prices_and_context_window_backup.json"
	if flag.NArg() > 0 {
		name = flag.Arg(0)
	}
	body, err := os.ReadFile(name)
	if err != nil {
		log.Fatal(err)
	}
	parsed, err := price.Parse(body)
	if err != nil {
		log.Fatal(err)
	}
	var rows []string
	for k, p := range parsed {
		if price.HasProfile(k.Provider) {
			rows = append(rows, p.Row(k))
		}
	}
	slices.Sort(rows)
	if err := os.WriteFile(*out, []byte(*date+"\n"+strings.Join(rows, "\n")+"\n"), 0o644); err != nil { //nolint:gosec // a public file
		log.Fatal(err)
	}
}
