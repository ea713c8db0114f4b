"""The stand-in of `pretend_vllm`, with a model behind it: what it answers was sampled from that model's own
probabilities, under the adapter that the request names."""

import urllib.parse
from contextlib import nullcontext

import torch
from peft import PeftModel
from pretend_vllm import PretendVLLM
from transformers import AutoModelForCausalLM


class SamplingVLLM(PretendVLLM):
    """One model folder on one port. Sampling is plain transformers, with none of this project's code, so that
    the trainer's log-probabilities meet another's, as they do with vLLM."""

    def __init__(self, folder, full=False):
        self.folder, self.model = folder, AutoModelForCausalLM.from_pretrained(folder).eval()
        super().__init__(**({"updates": True} if full else {}))

    def change(self, url, body):
        """As `PretendVLLM.change`; of a whole model that it is given the weights are read."""
        said = super().change(url, body)
        if urllib.parse.urlsplit(url).path == "/collective_rpc":
            own = self.whole == self.STARTED
            self.model = AutoModelForCausalLM.from_pretrained(self.folder if own else self.whole).eval()
        return said

    def answer(self, path, body):
        """As `PretendVLLM.answer`, which runs one request at a time."""
        status, said = super().answer(path, body)
        if status == 200 and path.endswith("/completions"):
            said["choices"] = self._sample(body)
        return status, said

    def _under(self, name):
        """The model under an adapter, or under none."""
        if name not in self.adapters:
            return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()
        if not isinstance(self.model, PeftModel):
            self.model = PeftModel.from_pretrained(self.model, self.adapters[name], adapter_name=name)
        elif name not in self.model.peft_config:
            self.model.load_adapter(self.adapters[name], adapter_name=name)
        self.model.set_adapter(name)
        for old in [known for known in self.model.peft_config if known not in self.adapters]:
            self.model.delete_adapter(old)
        return nullcontext()

    @torch.no_grad()
    def _sample(self, body):
        n, heat, ends = body["n"], body["temperature"], body["stop_token_ids"]
        draws = [torch.Generator().manual_seed(body["seed"] + i) for i in range(n)]
        ids, logprobs = [[] for _ in range(n)], [[] for _ in range(n)]
        with self._under(body["model"]):
            out = self.model(torch.tensor([body["prompt"]]), use_cache=True)
            out.past_key_values.batch_repeat_interleave(n)
            logits = out.logits[:, -1].repeat(n, 1)
            while True:
                shares = torch.log_softmax(logits.float() / (heat or 1.0), dim=-1)
                for i in range(n):
                    if ids[i] and ids[i][-1] in ends:
                        continue
                    if heat:
                        ids[i].append(int(torch.multinomial(shares[i].exp(), 1, generator=draws[i])))
                    else:
                        ids[i].append(int(shares[i].argmax()))
                    logprobs[i].append(float(shares[i, ids[i][-1]]))
                open_ = [i for i in range(n) if ids[i][-1] not in ends and len(ids[i]) < body["max_tokens"]]
                if not open_:
                    break
                step = torch.tensor([[own[-1]] for own in ids])
                logits = self.model(step, past_key_values=out.past_key_values, use_cache=True).logits[:, -1]
        return [
            {
                "index": i, "token_ids": ids[i], "logprobs": {"token_logprobs": logprobs[i]},
                "finish_reason": "stop" if ids[i][-1] in ends else "length",
                "prompt_token_ids": body["prompt"],
            }
            for i in range(n)
        ]
