package provider

// Providers without an OpenAI-compatible Batch API. Each sentence tells the user
// what to do instead.

func anthropic() Profile {
	return Profile{
		Name:  "anthropic",
		Hosts: []string{"api.anthropic.com"},
		Refusal: "Anthropic has no OpenAI-compatible Batch API; " +
			"call it in real time, or use its Message Batches API directly.",
	}
}

func fireworks() Profile {
	return Profile{
		Name:  "fireworks",
		Hosts: []string{"api.fireworks.ai"},
		Refusal: "Fireworks has no OpenAI-compatible Batch API; " +
			"call it in real time, or use its datasets and batch inference jobs directly.",
	}
}

func mistral() Profile {
	return Profile{
		Name:  "mistral",
		Hosts: []string{"api.mistral.ai"},
		Refusal: "Mistral has no OpenAI-compatible Batch API; " +
			"call it in real time, put a LiteLLM proxy in between, or use its batch jobs directly.",
	}
}

func openRouter() Profile {
	return Profile{
		Name:  "openrouter",
		Hosts: []string{"openrouter.ai", "*.openrouter.ai"},
		Refusal: "OpenRouter has no OpenAI-compatible Batch API; " +
			"call it in real time, use its own batches with inline requests, or go to the model's provider directly.",
	}
}

func xAI() Profile {
	return Profile{
		Name:  "xai",
		Hosts: []string{"api.x.ai", "*.api.x.ai"},
		Refusal: "xAI has no OpenAI-compatible Batch API; " +
			"call it in real time, put a LiteLLM proxy in between, or use its own batches directly.",
	}
}
