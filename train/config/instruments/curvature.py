"""Declarations of the instruments on the loss as a function of the weights (train/instruments/curvature.py)."""

from .declaration import Instrument, Tags

CURVATURE: dict[str, Instrument] = {
    "sharpness": Instrument(
        ".curvature:sharpness",
        "ends of the Hessian's spectrum",
        (
            Tags(
                ("sharpness/top", "sharpness/bottom"),
                "largest and most negative eigenvalue of the training loss's Hessian on one batch "
                "(`watch.curvature_batches`: the mean of several), by 24 Lanczos steps with full reorthogonalization. "
                "A negative bottom: a saddle. Over all parameters, frozen ones too",
                "Ghorbani et al. 2019, 1901.10159",
            ),
            Tags(
                ("sharpness/top_residual", "sharpness/bottom_residual"),
                "|Hv - λv| of the unit vector found: an eigenvalue lies within it",
            ),
            Tags(
                ("sharpness/threshold",),
                "the curvature beyond which the rule diverges on a parabola at the next step's rate: 2/lr for sgd, "
                "(2 + 2β)/lr momentum, (2 + 2β)/((1 + 2β) lr) nesterov; others have none, nor has a run with "
                "`optimizer.lr_factors` or `model.base_width`, whose parameters have rates of their own",
                "Cohen et al. 2021, 2103.00065",
            ),
        ),
        (("Hessian: ends of its spectrum and threshold", "sharpness/(top|bottom|threshold)"),),
        batches=lambda watch: watch.curvature_batches,
        precise=True,
        long=True,
    ),
    "sharpness_adam": Instrument(
        ".curvature:sharpness_adam",
        "the same, preconditioned as adam and adamw do",
        (
            Tags(
                tuple(
                    f"sharpness_adam/{part}"
                    for part in ("top", "bottom", "top_residual", "bottom_residual", "threshold")
                ),
                "the same of P^(-1/2) H P^(-1/2) with Adam's P = (1 - β₁^t)(sqrt(v̂) + eps); threshold (2 + 2β₁)/((1 - "
                "β₁) lr). From step 1 on, and not with `optimizer.freeze`. Entries whose first gradient is still to "
                "come have P near eps. Weight decay and clipping are not part of it",
                "Cohen et al. 2022, 2207.14484",
            ),
        ),
        (("Hessian as Adam sees it: ends of its spectrum and threshold", "sharpness_adam/(top|bottom|threshold)"),),
        batches=lambda watch: watch.curvature_batches,
        optimizer=True,
        precise=True,
        long=True,
        unmet=lambda config: (
            f"is for optimizer.name adam and adamw, got {config.optimizer.name}"
            if config.optimizer.name not in ("adam", "adamw")
            else "needs optimizer.freeze []: adam knows no scale of what is frozen"
            if config.optimizer.freeze
            else None
        ),
    ),
    "critical_sharpness": Instrument(
        ".curvature:critical_sharpness",
        "curvature along the next update, from a few forward passes",
        (
            Tags(
                ("sharpness/critical", "sharpness/critical_multiple"),
                "2 / η_c, with η_c the rate from which on the next update, as the optimizer makes it, no longer lowers "
                "the loss of its batch; and η_c in multiples of the step's rate: below 1 the step itself raises the "
                "loss. Along a gradient on a parabola 2 / η_c is gᵀHg / gᵀg, at most the top eigenvalue. A bracket by "
                "doubling from 1, then 3 secants: 6 forward passes near 1, and one more a doubling. Only the multiple "
                "with `optimizer.lr_factors` or `model.base_width`; neither if the update leads up",
                "Kalra et al. 2026, 2601.16979",
            ),
        ),
        (
            ("critical sharpness 2 / eta_c", "sharpness/critical"),
            ("critical multiple of the next update; below 1 it raises the loss", "sharpness/critical_multiple"),
        ),
        {"sharpness/critical": "the critical sharpness"},
        optimizer=True,
        precise=True,
    ),
    "landscape": Instrument(
        ".curvature:loss_landscape",
        "the loss along the next update and along a random direction",
        (
            Tags(
                ("landscape/update_lowest_at", "landscape/update"),
                "the loss of one batch along the next update, at -5 to 15 times it: where it is lowest, and a picture. "
                "1 would be the best step on this batch; large: the rate is small for where the training is",
            ),
            Tags(
                ("landscape/random_lowest_at", "landscape/random"),
                "along a random direction with each matrix as long as the weights', from -1 to 1",
                "Li et al. 2018, 1712.09913",
            ),
        ),
        (("where the loss is lowest along a line", "landscape/(update|random)_lowest_at"),),
        lines={
            "landscape/update": "the next update",
            "landscape/random": "a random direction as long as the weights",
        },
        optimizer=True,
        precise=True,
        long=True,
    ),
}
