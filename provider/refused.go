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

func ark() Profile {
	return Profile{
		Name:  "ark",
		Hosts: []string{"ark.cn-beijing.volces.com", "ark.ap-southeast.bytepluses.com"},
		Refusal: "Ark has no OpenAI-compatible Batch API; call it in real time, or use a base URL that ends in /api/v3/batch " +
			"and the id of a batch inference endpoint as the model, for single calls at half price.",
	}
}

func bedrock() Profile {
	return Profile{
		Name: "bedrock",
		Hosts: []string{
			"bedrock-runtime.*.amazonaws.com", "bedrock-runtime-fips.*.amazonaws.com",
			"bedrock-runtime.*.amazonaws.com.cn", "bedrock-runtime-fips.*.amazonaws.com.cn",
			"bedrock-runtime.*.api.aws", "bedrock-runtime-fips.*.api.aws", // reached by IPv6, too
			"bedrock-mantle.*.api.aws",
		},
		Refusal: "Amazon Bedrock reads and writes the files of batches in S3, without an OpenAI-compatible upload; " +
			"call it in real time, put a LiteLLM proxy in between, or use its batch inference jobs directly.",
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
