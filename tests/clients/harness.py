"""lm-evaluation-harness, which measures most models that are published, against a server: python3 harness.py URL MODEL.

Its own task machinery on questions that are written here, since nothing can be fetched; its own model `local-completions`
asks for log-probabilities of prompts by token ids and by text, in batches and several at once, and for texts."""

import json
import os
import sys
import tempfile

url, model = sys.argv[1:]
folder = tempfile.mkdtemp()
os.environ.update(
    HF_HOME=folder, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", LOGLEVEL="ERROR"
)

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.utils import RemoteTokenizer  # noqa: E402

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "Banana", "Seventeen"], "answer": 0},
    {"question": "Two plus two is", "choices": ["purple", "four", "France"], "answer": 1},
    {"question": "The opposite of hot is", "choices": ["cold", "window", "Tuesday"], "answer": 0},
    {"question": "Water is made of hydrogen and", "choices": ["carpets", "music", "oxygen"], "answer": 2},
]


class Tokenizer(RemoteTokenizer):
    """By the server's `/tokenize` and `/detokenize`. It has no `/tokenizer_info`: control tokens are told here."""

    tokenizer_info = {"eos_token": "<|im_end|>"}

    def _validate_server(self):
        pass


class Model(LocalCompletionsAPI):
    """The same with the server's tokenizer, as the harness has it with vLLM."""

    def __init__(self, **more):
        super().__init__(model=model, base_url=f"{url}/v1/completions", tokenizer_backend=None, **more)
        self.tokenizer_backend, self.tokenizer = "remote", Tokenizer(self.base_url)
        self.tokenized_requests = more.get("tokenized_requests", True)


def ask(lm, kind, *pairs):
    return getattr(lm, kind)([Instance(kind, {}, pair, i) for i, pair in enumerate(pairs)])


PAIRS = [(q["question"], f" {choice}") for q in QUESTIONS for choice in q["choices"]]


def scores_are_the_same_however_they_are_asked_for():
    plain = ask(Model(), "loglikelihood", *PAIRS)
    assert len(plain) == len(PAIRS) and all(score < 0 for score, _ in plain), plain
    for more in [{"batch_size": 5}, {"num_concurrent": 3, "batch_size": 2}, {"tokenized_requests": False}]:
        assert ask(Model(**more), "loglikelihood", *PAIRS) == plain, more


def scores_are_those_that_the_server_gives():
    context, rest = PAIRS[0]
    lm = Model()
    num_context, tokens = len(lm.tok_encode(context)), lm.tok_encode(context + rest)
    outputs = lm.model_call([tokens], generate=False)
    logprobs = outputs["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None and len(logprobs["tokens"]) == len(tokens) + 1, logprobs
    [(score, _)] = ask(lm, "loglikelihood", (context, rest))
    assert score == sum(logprobs["token_logprobs"][num_context : len(tokens)]), (score, logprobs)


def a_greedy_text_is_found_greedy():
    # A text that does not begin with a space, or the harness would move it to the context.
    until = {"until": ["\n\n"], "max_gen_toks": 8, "temperature": 0}
    texts = ask(Model(), "generate_until", *[(q["question"], until) for q in QUESTIONS])
    assert texts == ask(Model(num_concurrent=4), "generate_until", *[(q["question"], until) for q in QUESTIONS])
    assert texts == ask(Model(tokenized_requests=False), "generate_until", *[(q["question"], until) for q in QUESTIONS])
    # Where a text has other tokens than those that were sampled, there is nothing to compare.
    lm, num_compared = Model(), 0
    for question, text in zip(QUESTIONS, texts):
        context = question["question"]
        if len(lm.tok_encode(context + text)) == len(lm.tok_encode(context)) + 8:
            num_compared += 1
            assert ask(lm, "loglikelihood", (context, text))[0][1], (context, text)
    assert num_compared or model == "stub", texts


def a_task_runs_from_end_to_end():
    path = os.path.join(folder, "questions.jsonl")
    with open(path, "w") as file:
        file.writelines(json.dumps(question) + "\n" for question in QUESTIONS)
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": path}}, "test_split": "test", "num_fewshot": 0
    }
    choose = {
        **common, "task": "choose", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    tell = {
        **common, "task": "tell", "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}", "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    results = simple_evaluate(
        model=Model(num_concurrent=2), tasks=[choose, tell], bootstrap_iters=0, log_samples=True
    )
    assert [len(results["samples"][task]) for task in ("choose", "tell")] == [len(QUESTIONS)] * 2, results["samples"]
    accuracy = results["results"]["choose"]["acc,none"]
    assert accuracy >= 0.75 or model == "stub", results["results"]


for check in [
    scores_are_the_same_however_they_are_asked_for, scores_are_those_that_the_server_gives,
    a_greedy_text_is_found_greedy, a_task_runs_from_end_to_end,
]:
    check()
    print("ok", check.__name__, flush=True)
