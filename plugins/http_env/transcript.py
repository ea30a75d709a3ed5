"""The tokens of one sample: prompt, model turns, observations, and what is needed to go on with it after an abort.

What the model generated is kept as the token ids it came as and never encoded again; only text that nobody generated
(the prompt, an observation) goes through the tokenizer. Mask and log-probs stay in line because every token goes
through the sample's own `append_response_tokens` (slime/utils/types.py), which both trainers' samples have.
"""

from typing import Any

from plugins.errors import UserError
from plugins.http_env.engine import Generated
from plugins.http_env.protocol import Json

KEY = "http_env"  # our place in sample.metadata
_MARK = "@@the-assistant-turn@@"


class Transcript:
    """A sample being filled. `chat`: turns are framed by the tokenizer's chat template; otherwise texts simply
    follow.
    """

    def __init__(self, args: Any, sample: Any, tokenizer: Any) -> None:
        self._args = args
        self.sample = sample
        self._tokenizer = tokenizer
        self._chat = not isinstance(sample.prompt, str) or bool(getattr(args, "apply_chat_template", False))
        self.actions: list[str] = []
        self.pending: tuple[str, str] | None = None  # action without an answer yet, and why the model stopped there
        self.observations: list[str] = []
        self._prompt_tokens = 0
        self._turn_start = 0  # where in the response the current model turn begins
        self._observed = 0  # response tokens that are observations

    def begin(self, observation: str) -> None:
        """Start afresh with the prompt and what the environment said first."""
        sample = self.sample
        reset(sample)
        sample.tokens = _encode(self._tokenizer, self._prompt_text(observation))
        if not sample.tokens:
            raise UserError(f"sample {sample.index}: the prompt is empty; look at --input-key and the prompt data")
        self._prompt_tokens = len(sample.tokens)
        self.actions, self.pending, self.observations = [], None, [observation]
        self._turn_start = self._observed = 0

    def resume(self) -> bool:
        """Take up what an aborted try left in the sample; False when nothing is ours, or it does not add up."""
        sample, left = self.sample, (self.sample.metadata or {}).get(KEY)
        if not isinstance(left, dict) or "turn_start" not in left or not sample.response_length:
            return False
        in_line = len(sample.tokens) == left["prompt_tokens"] + sample.response_length
        if not in_line or any(
            values is None or len(values) != sample.response_length
            for values in (sample.loss_mask, sample.rollout_log_probs)
        ):
            return False
        self._prompt_tokens, self._turn_start, self._observed = (
            left[k] for k in ("prompt_tokens", "turn_start", "observed")
        )
        self.actions, self.observations = list(left["actions"]), list(left["observations"])
        self.pending = tuple(left["pending"]) if left["pending"] else None
        sample.reward, sample.remove_sample = None, False
        return True

    def left_over(self) -> Json:
        """What `resume` needs, as plain data for the sample's metadata."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "turn_start": self._turn_start,
            "observed": self._observed,
            "actions": self.actions,
            "pending": self.pending,
            "observations": self.observations,
        }

    @property
    def model_tokens(self) -> int:
        """Tokens the model has generated so far, masked or not by the trainer since."""
        return int(self.sample.response_length) - self._observed

    def add_model(self, generated: Generated) -> None:
        """Append what the model said."""
        self.sample.append_response_tokens(
            self._args,
            tokens=list(generated.tokens),
            log_probs=list(generated.log_probs),
            trainable=True,
            meta_info=generated.meta_info,
            text=generated.text,
        )

    def end_turn(self, generated: Generated, params: Json) -> None:
        """Make the whole turn the pending action: its text without the token or string that ended it."""
        turn = self.sample.tokens[self._prompt_tokens + self._turn_start :]
        resumed = len(turn) > len(generated.tokens)
        action = self._tokenizer.decode(turn) if resumed else generated.text
        for ending in self._endings(generated, params, turn):
            action = action.removesuffix(ending)
        self.pending = (action, generated.finish)

    def answered(self) -> None:
        """The environment has taken the pending action."""
        if self.pending is not None:
            self.actions.append(self.pending[0])
        self.pending = None

    def observation_tokens(self, observation: str) -> list[int]:
        """An observation as the model sees it, up to where its next turn begins."""
        tokens = _encode(self._tokenizer, self._framed(observation))
        last = self.sample.tokens[-1]
        return tokens[1:] if tokens and self._chat and tokens[0] == last else tokens  # the model ended its turn itself

    def add_observation(self, observation: str, tokens: list[int]) -> None:
        """Append what the environment said: masked, without log-probs."""
        if tokens:
            self.sample.append_response_tokens(
                self._args, tokens=tokens, trainable=False, text=self._tokenizer.decode(tokens)
            )
        self.observations.append(observation)
        self._observed += len(tokens)
        self._turn_start = self.sample.response_length

    def _prompt_text(self, observation: str) -> str:
        prompt = self.sample.prompt
        if isinstance(prompt, str):
            return prompt + (self._framed(observation) if observation else "")
        messages = [dict(message) for message in prompt]
        if observation and messages and messages[-1].get("role") == "user":
            messages[-1]["content"] = f"{messages[-1]['content']}\n{observation}"
        elif observation:
            messages.append({"role": "user", "content": observation})
        return self._template(messages)

    def _framed(self, observation: str) -> str:
        """The observation between the end of the assistant's turn and the start of its next one."""
        if not self._chat:
            return observation
        messages = [("user", "."), ("assistant", _MARK), ("user", observation)]
        text = self._template([{"role": role, "content": content} for role, content in messages])
        _, found, after = text.partition(_MARK)
        return after if found else observation

    def _template(self, messages: list[Json]) -> str:
        options = dict(getattr(self.sample, "apply_chat_template_kwargs", None) or {})
        tools = (self.sample.metadata or {}).get("tools")
        if tools:
            options["tools"] = tools
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return str(text)

    def _endings(self, generated: Generated, params: Json, turn: list[int]) -> list[str]:
        stops = params.get("stop") or []
        endings = [stops] if isinstance(stops, str) else list(stops)
        if isinstance(generated.matched, str):
            endings.append(generated.matched)
        ends = {
            generated.matched,
            getattr(self._tokenizer, "eos_token_id", None),
            *(params.get("stop_token_ids") or []),
        }
        if generated.finish == "stop" and turn and turn[-1] in ends:
            endings.append(self._tokenizer.decode(turn[-1:]))
        return [ending for ending in endings if ending]


def reset(sample: Any) -> None:
    """Back to a sample that nothing was generated for."""
    sample.tokens, sample.response, sample.response_length = [], "", 0
    sample.loss_mask, sample.rollout_log_probs = [], []
    sample.reward, sample.remove_sample = None, False
    for name in ("rollout_top_p_token_ids", "rollout_top_p_token_offsets", "rollout_routed_experts"):
        if getattr(sample, name, None) is not None:
            setattr(sample, name, None)
    if getattr(sample, "weight_versions", None):
        sample.weight_versions = []


def make_harmless(args: Any, sample: Any) -> None:
    """The smallest sample that a trainer can take and that teaches nothing: one masked token, reward 0.0, removed.

    Token lists, mask and log-probs are there because slime decides by the first sample of a batch what all of them
    have.
    """
    reset(sample)
    sample.tokens, sample.response_length = [0, 0], 1
    sample.loss_mask, sample.rollout_log_probs = [0], [0.0]
    sample.reward, sample.remove_sample = 0.0, True
    if getattr(args, "rollout_top_p", 1.0) != 1.0:
        sample.rollout_top_p_token_ids, sample.rollout_top_p_token_offsets = [], [0, 0]
    if getattr(args, "use_rollout_routing_replay", False):
        sample.rollout_routed_experts = [[[0] * args.moe_router_topk for _ in range(args.num_layers)]]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
