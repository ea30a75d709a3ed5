"""Deaths that the recipe brings about: shapes, sizes, data, and what a resume finds changed."""

from plugins.slime.causes.cause import ERROR, Cause

RECIPE: tuple[Cause, ...] = (
    Cause(
        "model-args-mismatch",  # slime megatron_utils/arguments.py:144
        r"AssertionError: hf_validate_args failed: (?P<which>.{1,240})",
        "The model's shape is not that of its Hugging Face configuration: {which}",
        "Make model.name and model.args fit model.hf_checkpoint",
    ),
    Cause(
        "batch-sizes",  # slime utils/arguments.py:1910, utils/dp_schedule.py; M:core/num_microbatches_calculator.py
        r"AssertionError: (?P<which>global_batch_size \d+ is not equal to .{1,160}|num_rollouts \(\d+\) < "
        r"global_batch_size.{0,120}"
        r"|step \d+: \d+ samples < dp_size.{0,80}|(?:dynamic|static) path: .{1,120}|over_sampling_batch_size "
        r"\d+ should.{1,80}"
        r"|(?:current )?global ?batch size \([\d, ]+\) is not divisible by.{1,120})",
        "The batch sizes do not fit each other or the number of GPUs: {which}",
        "Change rollout.batch_size, .n_samples, .global_batch_size or .steps: batch_size * n_samples = "
        "global_batch_size * steps, and each step has to be shared out over GPUs / (tensor * pipeline * context)",
    ),
    Cause(
        "parallel-sizes",  # M:training/arguments.py:317,543,1026, core/parallel_state.py:743, core/utils.py:490
        r"(?:AssertionError|RuntimeError|ValueError): (?P<which>world[ _]size \(\d+\) is not divisible by.{1,100}"
        r"|[Nn]umber of layers .{0,60}divisible.{0,80}|num_attention_heads \(\d+\) must be a multiple of.{1,80}"
        r"|num_moe_experts \(.{1,80}|\d+ is not divisible by \d+|.{0,80}must be divisible by (?:virtual "
        r")?pipeline.{0,60})",
        "The parallel sizes do not fit the model or the number of GPUs: {which}",
        "Change parallelism.tensor, .pipeline, .context, .expert or .expert_tensor, or parallelism.gpus and "
        "pod.gpu_count",
    ),
    Cause(
        "device-max-connections",  # M:training/arguments.py:950
        r"AssertionError: Using tensor model parallelism or context parallelism require setting the environment "
        r"variable",
        "CUDA_DEVICE_MAX_CONNECTIONS is not 1, which tensor and context parallel training needs",
        "Take CUDA_DEVICE_MAX_CONNECTIONS out of env: slime stages set it to 1",
    ),
    Cause(
        "lr-schedule-changed",  # M:core/optimizer_param_scheduler.py:302-306
        r"AssertionError: OptimizerParamScheduler: class input value (?P<which>.{1,160}?) do not match",
        "The learning-rate schedule is not that of the checkpoint: {which}",
        "Put optimisation.*, num_rollout and the batch sizes back to what the earlier attempts had, or set "
        "extra_args override-opt_param-scheduler: true to go on with the new schedule",
    ),
    Cause(
        "parallel-sizes-changed",  # M:training/checkpointing.py:1555-1601
        r"RuntimeError: (?P<which>\(TP, PP\) mismatch after resume \(.{1,60}? from checkpoint\))",
        "The optimizer state cannot be loaded with these parallel sizes: {which}",
        "Put parallelism.tensor and .pipeline back; to be free to change them set checkpoint.reshardable from the "
        "first step",
    ),
    Cause(
        "optimizer-not-saved",  # M:training/checkpointing.py:1785-1824
        r"KeyError: '(?:optimizer|opt_param_scheduler)'|Unable to load optimizer from checkpoint",
        "The checkpoint holds no optimizer state (it was saved with no-save-optim)",
        "Set extra_args no-load-optim: true, and take no-save-optim out of extra_args",
    ),
    Cause(
        "tracker-torn",  # M:training/checkpointing.py:300-306
        r"ERROR: Invalid metadata file .{0,300} Exiting",
        "Megatron cannot read the checkpoint's tracker file",
        "Nothing in the recipe: the next attempt restores the checkpoint again",
        "unknown",
    ),
    Cause(
        "colocated-async",  # slime train_async.py:11
        r"AssertionError: Colocation is not supported for async training",
        "Asynchronous training cannot share its GPUs with the engines",
        "Set parallelism.rollout_gpus (and no parallelism.colocate), or rollout.asynchronous: false",
    ),
    Cause(
        "no-rollout-gpus",  # slime ray/placement_group.py:_get_placement_group_layout
        r"TypeError: unsupported operand type\(s\) for \+: 'int' and 'NoneType'",
        "Without colocation the engines need GPUs of their own",
        "Set parallelism.rollout_gpus, or parallelism.colocate: true",
        within="_get_placement_group_layout",
    ),
    Cause(
        "gpus-per-node",  # slime ray/rollout_validation.py, backends/sglang_utils/sglang_engine.py:42
        r"ValueError: Invalid rollout server group GPU placement: |RuntimeError: GPU id \d+ is not valid under "
        r"CUDA_VISIBLE_DEVICES",
        "The engines do not fit on the GPUs they were given",
        "Make parallelism.rollout_gpus a multiple of engine.gpus_per_engine, and extra_args num-gpus-per-node what a "
        "node has (pod.gpu_count)",
    ),
    Cause(
        "no-trainable-token",  # slime ray/rollout.py: _convert_samples_to_train_data
        r"AssertionError: loss mask length (?P<which>\d+ != response length 0)\b",
        "A row has nothing to train on, no answer of the assistant ({which})",
        "Take such rows out of data.path, or set data.loss_mask to the model's chat format",
    ),
    Cause(
        "loss-mask-length",
        r"AssertionError: loss mask length (?P<which>\d+ != response length \d+)",
        "A sample's loss mask is not as long as its response ({which})",
        "Mend rollout.generate: it has to give one mask value for each response token",
    ),
    Cause(
        "gradient-not-finite",  # M:core/distributed/param_and_grad_buffer.py:228, pretrain_gpt.py:140; qa.md 9, 13
        r"RuntimeError: Rank \d+, node .{1,200}\(message='found (?P<which>(?:NaN|Inf) in local (?:grad norm"
        r"|forward loss))",
        "Gradients or loss are not finite: {which}",
        "Lower optimisation.lr or set optimisation.clip_grad, and look at the data; extra_args "
        "no-check-for-nan-in-loss-and-grad: true skips such steps",
    ),
    Cause(
        "token-out-of-vocabulary",
        rf"{ERROR}CUDA error: device-side assert triggered",
        "A CUDA kernel refused its input, mostly a token that the vocabulary does not have",
        "Check that tokenizer and weights of model.hf_checkpoint belong together, and model.args (vocab-size)",
    ),
    Cause(
        "weights-do-not-fit",  # torch.nn.Module.load_state_dict
        r"RuntimeError: Error\(s\) in loading state_dict|\s*size mismatch for |.{0,40}Global shape mismatch for "
        r"loaded",
        "The weights have another shape than the model, as with another vocabulary",
        "Make model.name and model.args (vocab-size, padded-vocab-size) fit model.hf_checkpoint",
    ),
    Cause(
        "tokenizer",  # transformers tokenization_utils_base.py:1757, 3365, models/auto/tokenization_auto.py
        r"(?:OSError|ValueError|ImportError): (?:Can't load tokenizer for|Tokenizer class '?\w+'? |Cannot use "
        r"chat template functions)",
        "The tokenizer cannot be loaded or has no chat template",
        "model.hf_checkpoint needs its tokenizer files; without a template set data.chat_template: false",
    ),
    Cause(
        "model-unknown",  # transformers models/auto/configuration_auto.py:440
        r"ValueError: The checkpoint you are trying to load has model type `(?P<which>[\w.-]+)`",
        "The image's transformers does not know models of type {which}",
        "Use a newer pod.image, or another model.hf_checkpoint",
    ),
    Cause(
        "hub-denied",  # huggingface_hub errors.py: GatedRepoError; transformers utils/hub.py:611
        r"(?:[\w.]*\.)?GatedRepoError|(?:OSError: )?You are trying to access a gated repo"
        r"|(?:[\w.]*(?:Error|Exception): )?(?P<which>40[13]) Client Error",
        "The Hugging Face Hub refused access",
        "Name HF_TOKEN among secrets, and accept the model's terms on its page with that account",
    ),
    Cause(
        "hub-not-found",  # huggingface_hub errors.py; transformers utils/hub.py:570
        r"(?:[\w.]*\.)?(?:RepositoryNotFoundError|RevisionNotFoundError|HFValidationError)"
        r"|OSError: Repo id must be in the form"
        r"|OSError: (?P<which>\S{1,200}) is not a local folder and is not a valid model"
        r"|(?:[\w.]*(?:Error|Exception): )?404 Client Error",
        "The Hub has no such repo or revision, or there is no such folder on the pod",
        "Check model.hf_checkpoint and data.path; for a private repo name HF_TOKEN among secrets",
    ),
    Cause(
        "inductor-cache",  # qa.md 12
        r"json\.decoder\.JSONDecodeError",
        "torch's compile cache could not be read",
        'Set env.TORCHINDUCTOR_FORCE_DISABLE_CACHES: "1"',
        within=r"inductor|torch/_dynamo|triton",
    ),
    Cause(
        "port-in-use",  # torch TCPStore; asyncio, uvicorn; qa.md 8
        rf"OSError: \[Errno 98\]|{ERROR}.{{0,160}}(?:EADDRINUSE|[Aa]ddress already in use)"
        rf"|{ERROR}The server socket has failed to listen|requests\.exceptions\.ConnectionError: "
        rf".{{0,200}}/get_model_info",
        "A port that the trainer wants is taken",
        "Fewer engines need fewer ports: raise engine.gpus_per_engine; nothing else may run on the pod",
        "unknown",
    ),
    Cause(
        "prompt-data-missing",  # slime utils/data.py:29
        r"FileNotFoundError: Prompt dataset path '(?P<which>[^']{1,240})' does not exist",
        "There is no prompt data at {which}",
        "Set data.path (or evaluation.data) to a file that is there",
    ),
    Cause(
        "file-missing",
        r"FileNotFoundError: (?:\[Errno 2\] No such file or directory: )?(?P<which>.{1,240})",
        "A file is missing: {which}",
        "Check model.hf_checkpoint, data.path and the paths in extra_args: they are paths on the pod",
    ),
    Cause(
        "no-permission",
        r"PermissionError: (?:\[Errno 13\] Permission denied: )?(?P<which>.{1,240})",
        "A file may not be read or written: {which}",
        "Choose paths that the pod's user may use (extra_args, pod.shared_dir)",
    ),
    Cause(
        "module-missing",
        r"ModuleNotFoundError: No module named (?P<which>'[\w.]{1,120}')",
        "Python does not find the module {which}",
        "Use a pod.image that has it, or put its folder on env.PYTHONPATH; rollout.generate and "
        "rollout.reward_function name package.module.function",
    ),
)
