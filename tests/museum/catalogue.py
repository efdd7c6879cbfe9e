"""The silent bugs of this field that were seen in public, and which of them are not shown here, with the reason."""

from __future__ import annotations

from museum.exhibit import Absent, Bug

__all__ = ["ABSENT", "BUGS"]

_TABLE = (
    # Schedules and samplers
    (1, "A zero-terminal schedule never reaches SNR 0, or the sampler never visits t = T", "diffusers#3664"),
    (2, "Noise prediction where nothing of the data is left: infinities that clipping hides", "diffusers#3851"),
    (3, "Min-SNR weights at SNR 0 are NaN", "TiankaiHang/Min-SNR-Diffusion-Training#2, #4"),
    (4, "The SNR table is computed before the betas are rescaled", "kohya-ss/sd-scripts#1263"),
    (5, "A flag or key of the configuration is ignored in silence", "InvokeAI#7601"),
    (6, "The learned range of variances is interpolated without logarithms", "diffusers#2090"),
    (7, "A predicted x is taken for predicted noise", "diffusers#1486, #2094"),
    (8, "The previous time is wrong for trailing and linspace spacing", "diffusers#9384"),
    (9, "Fewer steps than the table has take wrong coefficients", "diffusers#1912, #2076"),
    (10, "Times are not evenly spaced", "diffusers#5836"),
    (11, "The last level is there twice: the last step does nothing", "diffusers#6477"),
    (12, "The last level is not 0, or noise is added at the end: noise is left",
     "diffusers#5689; k-diffusion#43; AUTOMATIC1111#5797"),
    (13, "The penultimate level is dropped, and there is one step too few", "AUTOMATIC1111#6044"),
    (14, "A wrong list of orders for some numbers of steps", "diffusers#6953, #9104"),
    (15, "DPM-Solver++(2M) with a correction that lowers its order", "k-diffusion#56"),
    (16, "Noise is added to x without alpha", "diffusers#5158"),
    (17, "Noise is added for another time than sampling begins at", "diffusers#6085, #7386"),
    (18, "The first noise has the square of the first level", "diffusers#627"),
    (19, "Levels of a flow are wrong, or do not end at 0", "diffusers#10242, #10267"),
    (20, "The generator of random numbers is ignored", "diffusers#13678"),
    (21, "The batched path ends otherwise than the sequential one", "diffusers#14216"),
    (22, "The final alpha is that of the first entry, or 1, whichever was not meant",
     "diffusers#6068; lllyasviel/ControlNet#587; Stability-AI/stablediffusion#345"),
    (23, "The alphas of DDIM's strides are off by one", "lucidrains/denoising-diffusion-pytorch#83"),
    (24, "DDIM's variance forgets alpha_bar_s, and a clamp hides it", "jsboige/CoursIA#16158"),
    (25, "A shift of times is applied twice, or has a wrong constant", "SimpleTuner#2760; diffusers#10807"),
    (26, "The embedding of the level is not the one that was trained with", "kohya-ss/sd-scripts#1187"),
    (27, "One variant is mended and its copies are forgotten", "diffusers#9384, #5158, #6085"),
    # Precision
    (28, "The schedule's table is cast to half precision with the network", "AUTOMATIC1111#13052, #14145"),
    (29, "Times in bfloat16: 750 is 752",
     "diffusers#9405; DiffSynth-Studio#562, #1025; musubi-tuner#729; UniRL#438; mold#786"),
    (30, "Networks that were trained with rounded times break without the rounding", "ComfyUI#15081"),
    (31, "In bfloat16 no noise is added at small times", "diffusers#9004"),
    (32, "A norm's eps is 0 in float16", "diffusers#13316"),
    (33, "What is not finite becomes a black picture", "Z-Image#14; ComfyUI#1401, #14743"),
    (34, "`if seed:` drops seed 0", "diffusers#10964"),
    # Training
    (35, "Min-SNR of the velocity divides by SNR instead of SNR + 1", "diffusers#6307, #8466; kohya-ss/sd-scripts"),
    (36, "Averaged weights stay in place after they were judged",
     "diffusers#7549, #7599, #7048; waifu-diffusion#31; Open-Sora-Plan#186"),
    (37, "The average is not resumed, or the weights are resumed from it",
     "PixArt-sigma#156; schnetpack#785; YOLOX#1318; SimpleTuner#2839"),
    (38, "Latents are trained without the shift and scale that sampling has",
     "diffusers#8708, #8887, #11909, #5166"),
    (39, "The null condition is zeros in training and the empty prompt in sampling, or the other way round",
     "diffusers#7920; declare-lab/tango#42; TangoFlux#28; ACE-Step-1.5#1126; mosaicml/diffusion#77"),
    (40, "Captions are cut in silence", "diffusers#9763; SimpleTuner#760; finetrainers#426"),
    (41, "Padding of the text is not masked", "diffusers#8673, #12893, #12702, #11063; kohya-ss/sd-scripts"),
    (42, "The same noise on every rank", "torchtitan#1946; lingbot-vla-v2#41; VeOmni#143; accelerate#236"),
    (43, "The same augmentation in every worker, or in every epoch",
     "pytorch#5059, #3880; Lightning#6960, #20412; fairseq#1383"),
    (44, "A resume repeats or skips data",
     "accelerate#2016, #4071, #4233; ms-swift#10050; verl#7401; Lightning#20775; SimpleTuner#2899, #2986; dinov2#341"),
    (45, "Trained weights are not loaded on resume", "diffusers#12690"),
    (46, "Gradient accumulation takes the mean of micro-batches' means",
     "transformers#34191, #35438, #37197; OpenNMT#2209"),
    (47, "Gradients are not summed over the ranks, which diverge",
     "FunASR#3472; build-nanogpt#30; ClassyVision#706; speechbrain#2010"),
    (48, "Every rank trains for itself",
     "kohya-ss/sd-scripts#924, #989; ddpo-pytorch#10; diffusers#4046; OpenTSLM#49"),
    (49, "The norm of the gradient is that of a part of it", "SimpleTuner#2900"),
    (50, "The learning rate advances with processes or micro-batches",
     "diffusers#8312, #8461, #11242; accelerate#999; kohya-ss/sd-scripts"),
    (51, "Rows of a joint batch are told apart wrongly", "diffusers#13441, #13743, #13415"),
    (52, "Cached latents, or captions, belong to other pictures", "diffusers#13353; SimpleTuner#2898"),
    (53, "Transforms of a pair are drawn independently", "diffusers#10698, #7095"),
    (54, "Weights are cut off from the loss, and get no gradient", "SimpleTuner"),
    (55, "The last batch is dropped or counted twice in a figure", "accelerate#982, #2048, #2781"),
    (56, "A step that is not finite is taken and saved, and the good checkpoints are rotated away",
     "kyutai-labs/pocket-tts#262"),
    (57, "Rotation of checkpoints is off by one, or deletes before it has saved",
     "SimpleTuner#2989; Lightning#18750, #12225"),
    # Data, metrics, likelihood
    (58, "EXIF orientation is ignored", "diffusers#3465; kohya-ss/sd-scripts#1316; musubi-tuner#695; datasets#6739"),
    (59, "Hidden colours come out where transparency is dropped",
     "kohya-ss/sd-scripts#1269; deepdream#25; DIGITS#85"),
    (60, "16-bit pictures are clipped to white or lose their levels",
     "Pillow#2574, #3011, #1108, #5991; unsloth#10094"),
    (61, "CMYK, ICC profiles and gamma are ignored", "Pillow's documentation of color management"),
    (62, "Resizing without antialiasing, or with another filter, in figures of quality",
     "Parmar et al. 2022 (clean-fid); pytorch-fid#14; torchmetrics#3130; vision#2950"),
    (63, "A range of values is guessed", "torchmetrics#1244"),
    (64, "A likelihood of discrete data is applied to latents", "facebookresearch/DiT#52"),
    (65, "The offset of bits per dimension is wrong", "score_sde_pytorch#51"),
    (66, "An adaptive solver whose ranks take different numbers of steps hangs", "k-diffusion#79"),
    (67, "The same seed gives other pictures at another place or size of a batch",
     "AUTOMATIC1111#376; diffusers#612, #2659, #1718"),
    (68, "A corrupt picture ends everything, or another takes its place in silence",
     "detectron2#143; DALLE-pytorch#194, #195; clip-retrieval#13"),
)  # fmt: skip

BUGS = tuple(Bug(number=number, title=title, seen=seen) for number, title, seen in _TABLE)

ABSENT = (
    Absent(
        bug=66,
        reason="Cannot be: samplers and likelihoods ask questions and call nothing themselves, least of all a "
        "collective operation; `carrara.diffusion` may not import what knows of ranks (`make contract`). Adaptive "
        "steps are each row's own.",
    ),
)
