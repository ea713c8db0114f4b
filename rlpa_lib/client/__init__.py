"""The client of OpenAI-compatible servers. `endpoint.Exchange` is where a request is retried and its cost is
counted; `transport` sends one; `chat` has questions, answers, errors; `usage` has prices, budget, record."""
