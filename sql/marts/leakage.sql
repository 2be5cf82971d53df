-- Grain: one model of the sweep: a training at one of its steps, whatever became of it.
-- Source: models; attacked, leaks (staging); membership. Rules (untargeted_attacks has their limits): l2 <= delta;
-- adaptive_l2: l2 <= alpha times the mean l2 to the n nearest (paper, section 5.1); ratio: l2 below a third of that to
-- the second nearest (Gu). Intervals: Blaker's, as if pictures were independent; between trainings there is more:
-- leakage_effects.
WITH best_views AS (
    SELECT * FROM membership
    WHERE scope = 'model' AND selection = 'chosen'
    QUALIFY row_number() OVER (PARTITION BY model_id, attack ORDER BY draws DESC, flips DESC) = 1
),

final AS (
    SELECT
        models.model_id,
        models.run_id,
        models.cohort,
        models.experiments,
        models.brought,
        models.family, models.pixels, models.width, models.layers, models.attention, models.dropout,
        models.images, models.pool, models.draw, models.split, models.side, models.copied_images, models.copies,
        models.canaries, models.deduplicated, models.labels, models.classes, models.flip, models.steps,
        models.epochs, models.checkpoints, models.batch_size, models.learning_rate, models.warmup,
        models.weight_decay, models.ema, models."precision", models.timesteps, models.schedule,
        models.privacy_noise, models.privacy_clipping, models.seed,
        models.step,
        models.last,
        models.passes,
        models.parameters,
        models.loss,
        models.epsilon,
        models.seconds,
        models.status,
        models.reason,
        attacked.frechet,
        attacked.cmmd,
        attacked.quality_precision,
        attacked.quality_recall,
        attacked.made AS pictures_made,
        attacked.pictures,
        attacked.controls,
        loss.true_positives_at_1_percent AS loss_true_positives,
        lira.true_positives_at_1_percent AS lira_true_positives,
        CASE WHEN attacked.pictures > 0
            THEN 1 - pow(1 - 1 / attacked.pictures, attacked.made) END AS reachable_share,
        l2.called AS called_by_l2,
        l2.called_share AS called_by_l2_share,
        l2.called_share_lower AS called_by_l2_share_lower,
        l2.called_share_upper AS called_by_l2_share_upper,
        l2.extracted AS extracted_by_l2,
        l2.extracted_share AS extracted_by_l2_share,
        l2.extracted_share_lower AS extracted_by_l2_share_lower,
        l2.extracted_share_upper AS extracted_by_l2_share_upper,
        l2.canaries_extracted AS canaries_by_l2,
        control_l2.called AS control_called_by_l2,
        control_l2.called_share AS control_called_by_l2_share,
        control_l2.called_share_lower AS control_called_by_l2_share_lower,
        control_l2.called_share_upper AS control_called_by_l2_share_upper,
        control_l2.extracted AS controls_by_l2,
        control_l2.extracted_share AS controls_by_l2_share,
        control_l2.extracted_share_lower AS controls_by_l2_share_lower,
        control_l2.extracted_share_upper AS controls_by_l2_share_upper,
        adaptive_l2.called AS called_by_adaptive_l2,
        adaptive_l2.called_share AS called_by_adaptive_l2_share,
        adaptive_l2.called_share_lower AS called_by_adaptive_l2_share_lower,
        adaptive_l2.called_share_upper AS called_by_adaptive_l2_share_upper,
        adaptive_l2.extracted AS extracted_by_adaptive_l2,
        adaptive_l2.extracted_share AS extracted_by_adaptive_l2_share,
        adaptive_l2.extracted_share_lower AS extracted_by_adaptive_l2_share_lower,
        adaptive_l2.extracted_share_upper AS extracted_by_adaptive_l2_share_upper,
        adaptive_l2.canaries_extracted AS canaries_by_adaptive_l2,
        control_adaptive_l2.called AS control_called_by_adaptive_l2,
        control_adaptive_l2.called_share AS control_called_by_adaptive_l2_share,
        control_adaptive_l2.called_share_lower AS control_called_by_adaptive_l2_share_lower,
        control_adaptive_l2.called_share_upper AS control_called_by_adaptive_l2_share_upper,
        control_adaptive_l2.extracted AS controls_by_adaptive_l2,
        control_adaptive_l2.extracted_share AS controls_by_adaptive_l2_share,
        control_adaptive_l2.extracted_share_lower AS controls_by_adaptive_l2_share_lower,
        control_adaptive_l2.extracted_share_upper AS controls_by_adaptive_l2_share_upper,
        ratio.called AS called_by_ratio,
        ratio.called_share AS called_by_ratio_share,
        ratio.called_share_lower AS called_by_ratio_share_lower,
        ratio.called_share_upper AS called_by_ratio_share_upper,
        ratio.extracted AS extracted_by_ratio,
        ratio.extracted_share AS extracted_by_ratio_share,
        ratio.extracted_share_lower AS extracted_by_ratio_share_lower,
        ratio.extracted_share_upper AS extracted_by_ratio_share_upper,
        ratio.canaries_extracted AS canaries_by_ratio,
        control_ratio.called AS control_called_by_ratio,
        control_ratio.called_share AS control_called_by_ratio_share,
        control_ratio.called_share_lower AS control_called_by_ratio_share_lower,
        control_ratio.called_share_upper AS control_called_by_ratio_share_upper,
        control_ratio.extracted AS controls_by_ratio,
        control_ratio.extracted_share AS controls_by_ratio_share,
        control_ratio.extracted_share_lower AS controls_by_ratio_share_lower,
        control_ratio.extracted_share_upper AS controls_by_ratio_share_upper
    FROM models
    LEFT JOIN attacked ON attacked.model_id = models.model_id
    LEFT JOIN best_views AS loss ON loss.model_id = models.model_id AND loss.attack = 'loss'
    LEFT JOIN best_views AS lira ON lira.model_id = models.model_id AND lira.attack = 'lira_online'
    LEFT JOIN leaks AS l2
        ON l2.model_id = models.model_id AND l2.against = 'members' AND l2.rule = 'l2'
    LEFT JOIN leaks AS control_l2
        ON control_l2.model_id = models.model_id
        AND control_l2.against = 'controls'
        AND control_l2.rule = 'l2'
    LEFT JOIN leaks AS adaptive_l2
        ON adaptive_l2.model_id = models.model_id
        AND adaptive_l2.against = 'members'
        AND adaptive_l2.rule = 'adaptive_l2'
    LEFT JOIN leaks AS control_adaptive_l2
        ON control_adaptive_l2.model_id = models.model_id
        AND control_adaptive_l2.against = 'controls'
        AND control_adaptive_l2.rule = 'adaptive_l2'
    LEFT JOIN leaks AS ratio
        ON ratio.model_id = models.model_id AND ratio.against = 'members' AND ratio.rule = 'ratio'
    LEFT JOIN leaks AS control_ratio
        ON control_ratio.model_id = models.model_id
        AND control_ratio.against = 'controls'
        AND control_ratio.rule = 'ratio'
)

SELECT * FROM final
ORDER BY run_id, step
