package provider_test

import (
	"fmt"
	"net/url"

	"github.com/autobatcher/autobatcher/provider"
)

// The URL of a call selects the profile, and the profile says what may be sent.
func ExampleForURL() {
	u, err := url.Parse("https://api.groq.com/openai/v1/chat/completions")
	if err != nil {
		panic(err)
	}
	p := provider.ForURL(u)
	fmt.Println(p.Name, p.LineURL("/chat/completions"), p.Batches("/embeddings"))
	fmt.Println(p.CheckWindow("1h"))
	// Output:
	// groq /v1/chat/completions false
	// groq does not accept the completion window "1h"; it accepts 24h to 7d
}

// Start from the nearest profile and change the rules that differ.
func ExampleGeneric() {
	p := provider.Generic()
	p.Name = "our-gateway"
	p.OneModel = false
	p.MaxLines = -1
	fmt.Println(p.Validate())
	// Output:
	// provider "our-gateway": MaxLines is -1; want 0 (no limit) or more
}
