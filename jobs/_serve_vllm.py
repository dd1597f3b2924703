"""vLLM's turn in the serving benchmark, in the Python of an environment that has it.

It is a program of its own and imports nothing of ours: what it is to answer comes in as JSON, its
answers and times go out as JSON on the last line.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer twice, short answers first, and say how long the second time took."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams

    asked = json.load(sys.stdin)
    llm = LLM(
        model=asked["model"],
        dtype=asked["dtype"],
        max_num_seqs=asked["slots"],
        max_model_len=asked["max_model_len"],
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        # By default it wants most of the machine's memory to be free.
        kv_cache_memory_bytes=2 << 30,
    )
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]

    def answer(lengths: list[int]) -> list[list[int]]:
        params = [
            SamplingParams(max_tokens=size, temperature=0.0, ignore_eos=True, detokenize=False)
            for size in lengths
        ]
        found = llm.generate(prompts, params, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]

    answer(asked["warm_lengths"])
    start, cpu_start = time.perf_counter(), time.process_time()
    answers = answer(asked["lengths"])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "answers": answers}))


if __name__ == "__main__":
    main()
