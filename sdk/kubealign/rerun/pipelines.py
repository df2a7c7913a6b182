"""The parameters of each pipeline, from the steps of what one of its runs made."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign.rerun.functions import placed
from kubealign.rerun.parameters import Parameters
from kubealign.rerun.story import Story
from kubealign_components.data.chat.settings import TEMPLATE_FIELDS
from kubealign_components.data.fingerprint import Step, digest
from kubealign_components.data.withdrawals import WITHDRAWN, WITHDRAWN_SOURCES
from kubealign_components.engines.judging_functions import FUNCTION_IDENTITIES
from kubealign_components.evaluate.second_reward import SETTING
from kubealign_components.sources.source import MIXED

Settings = dict[str, object]

_SAMPLING = {
    "engine": "sample_engine",
    "temperature": "sample_temperature",
    "max_new_tokens": "sample_max_new_tokens",
    "seed": "seed",
}
_TRAINING = {
    "objective": "train_objective",
    "beta": "train_beta",
    "learning_rate": "train_learning_rate",
    "seed": "seed",
}
_LENGTHS = {"max_seq_len": "filter_max_seq_len", "max_prompt_len": "filter_max_prompt_len"}


def offline_alignment(story: Story) -> dict[str, object]:
    """Of ``offline_alignment``."""
    made = _Rerun(story)
    made.policy()
    made.rounds()
    made.sources("import_prompts", "sources", "import_options", {"seed": "seed"})
    for step in story.all("filter"):
        made.filter(step, {**_LENGTHS, "min_completions": "filter_min_completions"})
    sampled = story.one("sample")
    if sampled:
        made.sample(sampled, {"n": "sample_n", "truncated": "sample_truncated"})
    else:
        made.parameters.values["sample_n"] = 0
    for step in story.all("rewards"):
        made.rewards(step, {"functions": "reward_functions"}, model="reward_model")
    for step in story.all("rank"):
        made.rank(step)
    names = ("strategy", "pairs_per_prompt", "pool")
    made.tail({name: f"select_{name}" for name in names}, {"source": "logprobs_source"})
    made.train({**_TRAINING, "epochs": "train_epochs", "adapter": "train_adapter"})
    reward = {"functions": "reward_functions"}
    made.evaluate("" if sampled else "evaluate_n", reward=reward, judge="evaluate_options")
    made.benchmarks()
    return made.parameters.values


def salmon(story: Story) -> dict[str, object]:
    """Of ``salmon``."""
    made = _Rerun(story)
    made.policy()
    answered = [step for step in story.all("sample") if _of_rl_prompts(story, step)]
    offline = answered or story.stages & {"rewards", "select", "logprobs", "mix", "train"}
    made.parameters.values["rl"] = "offline" if offline else "ppo"
    own = {"languages": "clean_prompts_languages", "max_rows": "clean_prompts_max_rows", "seed": "seed"}
    made.sources("clean_prompts", "sources", "clean_prompts_options", own)
    made.sources("clean_pmp", "pmp_sources", "pmp_options", {"max_rows": "pmp_max_rows", "seed": "seed"})
    own = {"max_tokens": "rl_prompts_max_tokens", "max_rows": "rl_prompts_max_rows", "seed": "seed"}
    made.sources("rl_prompts", "rl_sources", "rl_prompts_options", own)
    for step in story.all("filter"):
        made.filter(step, _LENGTHS)
    for step in story.all("sample"):
        made.sample(step, {"n": "sample_n"} if step in answered else {}, fixed=step not in answered)
    made.judgements()
    made.reward_models()
    for step in story.all("train_ppo"):
        made.ppo(step)
    for step in story.all("rewards"):
        made.rewards(step, {}, model="")
    made.tail({}, {})
    made.train(_TRAINING)
    n = "evaluate_n" if story.one("train_ppo") else ""
    made.evaluate(n, reward={}, judge="evaluate_judge_options")
    made.benchmarks()
    return made.parameters.values


def _of_rl_prompts(story: Story, sample: Step) -> bool:
    """Whether it answered the prompts that are aligned on, and not those whose answers are judged."""
    tokenised = story.manifest.recipe[sample["inputs"]["prompts"]]
    return story.feeding(tokenised, "prompts") == "rl_prompts"


def _without(settings: Mapping[str, object], *names: str) -> Settings:
    return {name: value for name, value in settings.items() if name not in names}


class _Rerun:
    """Gathers parameters, stage by stage."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.parameters = Parameters(story.manifest.slug)
        self._revision: str | None = None

    def policy(self) -> None:
        """Policy, reference, and the revision of a hub's policy, which every stage is told."""
        holders = (
            *(("filter", "policy"), ("judge", "judge"), ("train_reward_model", "policy")),
            *(("train_ppo", "policy"), ("train", "policy")),
        )
        for stage, role in holders:
            for step in self.story.of_first_round(stage):
                if role not in step["models"]:  # where functions alone judge, no model is asked
                    continue
                origin = self.story.origin_of(step["models"][role]["digest"])
                self.parameters.values.setdefault("policy", origin["uri"])
                self._revision = self._revision or origin.get("revision")
        for step in self.story.of_first_round("logprobs"):
            reference = step["models"].get("reference")
            if reference and (origin := self.story.origin_of(reference["digest"])):
                self.parameters.values["reference"] = origin["uri"]
                self._reference_at(origin.get("revision"))

    def rounds(self) -> None:
        """How many, and what the policies of further ones stay near."""
        if self.story.rounds > 1:
            self.parameters.values["rounds"] = self.story.rounds
        for step in self.story.all("join_rounds"):
            self.parameters.values["rounds_reference"] = step["params"]["references"]
        for step in self.story.all("choose"):
            self.parameters.values["rounds_stop"] = "no_gain"
            limits = {name: step["params"][name] for name in ("max_kl", "max_length_ratio")}
            given = {name: value for name, value in limits.items() if value is not None}
            self.parameters.values |= {"choose_options": given} if given else {}

    def sources(self, stage: str, parameter: str, options: str, named: Mapping[str, str]) -> None:
        """Sources and settings of a stage that reads them."""
        for step in self.story.all(stage):
            made = [self._source(source, stage) for source in step["params"]["sources"]]
            self.parameters.values[parameter] = made
            unset = ("sources", "language_identifier", "prompts")
            self._put(options, _without(step["params"], *unset), named)
            if facts := step["params"].get("prompts"):
                bonus = {facts["question_type"]: facts["length_bonus"]}
                self._put(options, {"length_bonus": bonus}, {})
            if stage == "rl_prompts":
                self._at_revision(options)

    def _source(self, source: Mapping[str, object], stage: str) -> Settings:
        content = source["content"]
        assert isinstance(content, Mapping)
        origin = self.story.origin_of(content.get("sha256") or content["commit"])
        # Where the kind of rows is no setting, the recipe says what they were all the same.
        recorded = ("content", "format") if stage in ("clean_prompts", "rl_prompts") else ("content",)
        kept = {k: v for k, v in _without(source, *recorded).items() if v not in (None, {}, [])}
        if MIXED in str(kept.get("format")):  # found row by row
            del kept["format"]
        return kept | dict(origin)

    def filter(self, step: Step, named: Mapping[str, str]) -> None:
        """Lengths, and the template."""
        params = self._with_template(step["params"])
        if "min_completions" not in named and not params["min_completions"]:
            params.pop("min_completions")
        self._put("filter_options", params, named)
        self._at_revision("filter_options")

    def sample(self, step: Step, named: Mapping[str, str], *, fixed: bool = False) -> None:
        """How completions were sampled; ``fixed`` where the pipeline says how many."""
        params = step["params"]
        sampling = _without(params["sampling"], *(["n"] if fixed else []))
        split = {"split_seed": "seed", "validation_fraction": "validation_fraction"}
        own = _without(params, "sampling", "engine_versions", "round")
        self._put("sample_options", own, {**split, **named})
        self._put("sample_options", sampling, {**_SAMPLING, **named}, "sampling")
        self._at_revision("sample_options")

    def rewards(self, step: Step, named: Mapping[str, str], model: str) -> None:
        """How completions were rewarded, by a model that lies at the parameter ``model`` or that the run
        made."""
        self._reward(step["params"], step["models"]["reward"], named, model)

    def rank(self, step: Step) -> None:
        """How completions were compared, and by whom."""
        settings = self._own_judge(step["params"]["judge"], step["models"].get("judge"))
        self.parameters.values["rank_judge"] = settings.pop("judge")
        # Weights stand in the file of principles.
        self._put("rank_options", _without(step["params"], "judge", "weights"), {})
        self._put("rank_options", settings, {}, "judge")

    def _reward(
        self, params: Settings, identity: Mapping[str, object], named: Mapping[str, str], model: str
    ) -> None:
        settings = self._reward_settings(params, identity, by_name=bool(model))
        if not settings["functions"] and "functions" not in named:
            settings.pop("functions")
        if "model" in settings:
            self.parameters.values[model] = settings.pop("model")
        self._put("rewards_options", settings, named, "reward")

    def _reward_settings(
        self, params: Settings, identity: Mapping[str, object], *, by_name: bool = True
    ) -> Settings:
        """How completions were rewarded, with the places of functions and principles, and of the model where
        that is known ``by_name``, and not made in the run."""
        settings = self._with_functions(params, identity)
        used = identity.get("model")
        if by_name and isinstance(used, Mapping):
            origin = self.story.origin_of(used["digest"])
            settings |= {"model": origin["uri"], "model_revision": origin.get("revision")}
        shown = identity.get("principles")
        if isinstance(shown, list) and shown:
            settings |= {
                "principles": self.story.uri_of(shown),
                "principle_names": [name for name, _ in shown],
            }
        return settings

    def tail(self, select: Mapping[str, str], logprobs: Mapping[str, str]) -> None:
        """select, logprobs and mix, and which of the first two came first."""
        for step in self.story.all("select"):
            self._put("select_options", step["params"], {**select, "seed": "seed"})
            before = self.story.feeding(step, "rewarded") == "logprobs"
            self.parameters.values["logprobs_order"] = "before" if before else "after"
        for step in self.story.all("logprobs"):
            params = _without(step["params"], "regime", "strategy")
            self._put("logprobs_options", params | {"dtype": step["params"]["regime"]["compute"]}, logprobs)
            self._at_revision("logprobs_options")
        own = {"seed": "seed", "validation_fraction": "validation_fraction"}
        for step in self.story.all("mix"):
            self._put("mix_options", step["params"], own)

    def train(self, named: Mapping[str, str]) -> None:
        """How the policy was trained, and sharded where its reference was scored for that."""
        for step in self.story.all("logprobs"):
            if strategy := step["params"].get("strategy"):
                self._put("train_options", {"strategy": strategy}, {})
        for step in self.story.all("train"):
            self._put("train_options", step["params"], named)
            self._at_revision("train_options")

    def evaluate(self, n: str, *, reward: Mapping[str, str], judge: str) -> None:
        """What was compared, and on how many prompts."""
        for step in self.story.all("evaluate"):
            params, models = step["params"], step["models"]
            named = {**_SAMPLING, **({"n": n} if n else {})}
            skipped = () if n else ("n",)
            self._put("sample_options", _without(params["sampling"], *skipped), named, "sampling")
            if params["reward"] and not self.story.all("rewards"):
                model = "reward_model" if reward else ""
                self._reward(params["reward"], models["reward"], reward, model)
            own = {
                "max_prompts": "evaluate_max_prompts",
                "validation_fraction": "validation_fraction",
                "split_seed": "seed",
            }
            self._put("evaluate_options", _without(params, "sampling", "reward", SETTING, "judge"), own)
            if params.get(SETTING):
                second = self._reward_settings(params[SETTING], models[SETTING])
                self._put("evaluate_options", {SETTING: second}, {})
            if params["judge"]:
                self._judge_of_evaluation(params["judge"], models.get("judge"), judge)
            self._at_revision("evaluate_options")

    def benchmarks(self) -> None:
        """Which tasks, and how they were asked. What they may do to the machine is to be said anew."""
        for step in self.story.all("benchmark"):
            params = step["params"]
            self.parameters.values["benchmark_tasks"] = params["tasks"]
            own = _without(params, "tasks", "measured", "version", "lm_eval")
            self._put("benchmark_options", own, {"seed": "seed"})
            if origin := self.story.manifest.origin_of(digest(params["measured"])):  # none of lm-eval's own
                self._put("benchmark_options", {"task_folder": origin["uri"]}, {})
            self._at_revision("benchmark_options")

    def _judge_of_evaluation(
        self, params: Settings, identity: Mapping[str, object] | None, options: str
    ) -> None:
        if options == "evaluate_judge_options":
            own = {"revision": self._revision}  # the policy judges
            self._put(options, self._judge_settings(params, identity) | own, {})
            return
        settings = self._own_judge(params, identity)
        for rank in self.story.all("rank"):  # whose judge compares in the end, but for what is given here
            ranking = self._own_judge(rank["params"]["judge"], rank["models"].get("judge"))
            settings = {k: v for k, v in settings.items() if k not in ranking or ranking[k] != v}
        self._put(options, settings, {}, "judge")

    def _own_judge(self, params: Settings, identity: Mapping[str, object] | None) -> Settings:
        """How a judge that need not be the policy was asked, and which it was. Where an endpoint did, the
        settings name it; where functions alone judged, any will do."""
        if identity is None:
            return {"judge": self.parameters.values["policy"]} | self._judge_settings(params, None)
        origin = self.story.origin_of(str(identity["digest"]))
        own = {"judge": origin["uri"], "revision": origin.get("revision")}
        return self._judge_settings(params, identity) | own

    def judgements(self) -> None:
        """judge and aggregate."""
        for step in self.story.all("judge"):
            settings = self._judge_settings(step["params"], step["models"].get("judge"))
            self._put("judge_options", settings, {"principles": "principles"})
            self._at_revision("judge_options")
        for step in self.story.all("aggregate"):
            params = _without(step["params"], "rule_functions")
            params["principles"] = self.story.origin_of(step["params"]["principles"]["digest"])["uri"]
            own = {"principles": "principles", "passes": "aggregate_passes", "seed": "seed"}
            self._put("aggregate_options", params, own)

    def _judge_settings(self, params: Settings, identity: Mapping[str, object] | None) -> Settings:
        """How the model of ``identity`` was asked, None for one that was not, and which functions judged."""
        settings = self._with_template(_without(params, FUNCTION_IDENTITIES))
        statements = params["principles"]
        assert isinstance(statements, list)
        settings |= {
            "principles": self.story.uri_of(statements),
            "principle_names": [name for name, _ in statements],
        }
        functions, identities = params.get("functions"), params.get(FUNCTION_IDENTITIES)
        if isinstance(functions, list) and isinstance(identities, Mapping):
            settings["functions"] = placed(self.story, functions, identities)
        if isinstance(template := params.get("template"), Mapping):
            settings["template"] = self.story.origin_of(template["digest"])["uri"]
        if identity and isinstance(adapter := identity.get("adapter"), Mapping):
            settings["adapter"] = self.story.origin_of(adapter["digest"])["uri"]
        return settings

    def reward_models(self) -> None:
        """Both trainings of the reward model: on people's preferences, and on those by principles."""
        for step in self.story.all("train_reward_model"):
            first = self.story.feeding(step, "preferences") == "clean_pmp"
            prefix = "pmp" if first else "reward_model"
            settings = dict(step["params"])
            kind, _, head = str(settings.pop("head")).partition(", ")
            shown, template = settings.pop("own_principles"), settings["template"]
            settings["template"] = self.story.origin_of(template["digest"])["uri"]
            settings["principles"] = self.story.uri_of(shown) if shown else ""
            settings["principle_names"] = [name for name, _ in shown]
            settings["head"] = head if kind == "new" else None
            named = {name: f"{prefix}_{name}" for name in ("learning_rate", "max_steps")}
            named |= {name: f"reward_model_{name}" for name in ("adapter", "batch_size")}
            own = {"principles": "principles", "seed": "seed"}
            self._put("reward_model_options", settings, named | own)
            self._at_revision("reward_model_options")

    def ppo(self, step: Step) -> None:
        """train_ppo."""
        models = step["models"]
        settings = self._with_functions(step["params"], models.get("rewards", {}))
        for role in ("principles", "interventions"):
            if "principles" in models:
                settings[role] = self.story.origin_of(models[role]["digest"])["uri"] if role in models else ""
        if adapter := models.get("policy_adapter"):
            settings["policy_adapter"] = self.story.origin_of(adapter["digest"])["uri"]
        if not settings["functions"]:
            settings.pop("functions")
        names = ("max_new_tokens", "rollout_batch", "step_batch", "epochs", "max_steps", "learning_rate")
        named = {name: f"ppo_{name}" for name in (*names, "kl_coef")}
        shared = {"principles": "rl_principles", "validation_fraction": "validation_fraction", "seed": "seed"}
        self._put("ppo_options", settings, named | shared)
        self._at_revision("ppo_options")

    def _with_functions(self, params: Settings, identity: Mapping[str, object]) -> Settings:
        """``params`` with the places of reward functions, which ``identity`` tells by what they are."""
        functions, identities = params["functions"], identity.get("functions", {})
        assert isinstance(functions, list) and isinstance(identities, Mapping)
        return params | {"functions": placed(self.story, functions, identities)}

    def _with_template(self, params: Settings) -> Settings:
        """``params`` with the place of the template in the place of its text."""
        settings = {k: v for k, v in params.items() if v not in (None, {}) or k not in TEMPLATE_FIELDS}
        if TEMPLATE_FIELDS[0] in settings:
            settings[TEMPLATE_FIELDS[0]] = self.story.uri_of(settings[TEMPLATE_FIELDS[0]])
        return settings

    def _put(
        self, options: str, settings: Mapping[str, object], named: Mapping[str, str], group: str = ""
    ) -> None:
        if WITHDRAWN in settings:  # a recipe knows it by what it took away
            lay = self.story.origin_of(str(settings[WITHDRAWN]))["uri"]
            settings = {k: v for k, v in settings.items() if k != WITHDRAWN_SOURCES} | {WITHDRAWN: lay}
        self.parameters.put(options, settings, named, group)

    def _at_revision(self, options: str) -> None:
        self._put(options, {"revision": self._revision}, {})

    def _reference_at(self, revision: str | None) -> None:
        for options in ("logprobs_options", "train_options"):
            self._put(options, {"reference_revision": revision}, {})
