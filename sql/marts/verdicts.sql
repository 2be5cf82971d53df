-- Grain: one prompt that was tried (no controls).
-- Source: prompts, cliques, samples, calibration; training_matches, control_distances (staging). Two questions, never
-- mixed. copied: the prompt's nearest generation is a copy of its own image (training_matches says what a copy is).
-- seen: that generation comes nearer to the image than controls' come to theirs (calibration.threshold, strictly
-- below): the model was trained on it. extracted_calibrated is both. Every prompt is judged by its nearest generation,
-- which is stored whatever the filter says; so neither depends on what else was kept. extracted is the paper's rule,
-- l2 <= delta (section 4.2), of any image; what it found in a slice of the prompts that the filter dropped counts
-- extraction_weight times. aspect: wide from 5:4 on, upright from 4:5 on.
WITH chosen AS (
    SELECT
        threshold,
        ceil(generations_per_prompt / greatest(generations_per_control, 1)) AS times,
        (SELECT count(distance) FROM control_distances) AS n_controls
    FROM calibration
    WHERE chosen
),

per_prompt AS (
    SELECT
        prompt_id,
        bool_or(extracted) FILTER (NOT regenerated) AS extracted,
        bool_or(extracted) FILTER (nearest AND relation = 'own') AS extracted_own,
        bool_or(copied) AS copied_any,
        bool_or(copied) FILTER (nearest AND relation = 'own') AS copied,
        min(l2) FILTER (NOT regenerated) AS nearest_l2,
        min(l2) FILTER (nearest) AS nearest_generation_l2,
        min(distance) FILTER (nearest AND relation = 'own') AS own_distance,
        min(l2) FILTER (nearest AND relation = 'own') AS own_l2,
        min(coarse_l2) FILTER (nearest AND relation = 'own') AS own_coarse_l2,
        min(coarse_ratio) FILTER (nearest AND relation = 'own') AS own_coarse_ratio
    FROM training_matches
    GROUP BY prompt_id
),

-- Of controls that are as near, the last one has them all.
ranked_controls AS (
    SELECT distance, count(*) OVER (ORDER BY distance) AS as_near
    FROM control_distances
    WHERE distance IS NOT NULL
),

judged AS (
    SELECT
        per_prompt.*,
        least(1, chosen.times * (1 + coalesce(controls.as_near, 0)) / (chosen.n_controls + 1)) AS p_value
    FROM per_prompt
    CROSS JOIN chosen
    ASOF LEFT JOIN (SELECT distance, max(as_near) AS as_near FROM ranked_controls GROUP BY distance) AS controls
        ON per_prompt.own_distance >= controls.distance
),

-- Of a prompt that made pictures and of which none was judged (--keep none), nobody knows whether it copied.
known AS (
    SELECT prompts.prompt_id
    FROM prompts
    JOIN cliques USING (prompt_id)
    LEFT JOIN judged USING (prompt_id)
    WHERE prompts.group_id IS NOT NULL AND (judged.own_l2 IS NOT NULL OR cliques.n_generated = 0)
),

final AS (
    SELECT
        prompts.prompt_id,
        prompts.text AS prompt,
        prompts.origin,
        prompts.group_id,
        prompts.n_duplicates,
        prompts.stratum,
        prompts.stratum_order,
        prompts.inclusion_probability,
        CAST(len(regexp_extract_all(prompts.text, '[^\s\p{Z}]+')) AS INTEGER) AS prompt_words,
        CASE
            WHEN samples.original_width >= 1.25 * samples.original_height THEN 'wide'
            WHEN samples.original_height >= 1.25 * samples.original_width THEN 'upright'
            WHEN samples.original_width > 0 THEN 'square'
        END AS aspect,
        domain_of(samples.url) AS domain,
        cliques.n_generated,
        cliques.clique_size,
        cliques.mean_distance,
        cliques.flagged,
        cliques.keep_rule,
        cliques.keep_probability,
        judged.nearest_l2,
        judged.nearest_generation_l2,
        judged.own_l2,
        judged.own_coarse_l2,
        judged.own_coarse_ratio,
        judged.own_distance,
        CASE WHEN prompts.group_id IS NOT NULL AND judged.own_distance IS NOT NULL AND chosen.n_controls > 0
            THEN judged.p_value
        END AS seen_p_value,
        CASE WHEN known.prompt_id IS NOT NULL THEN coalesce(judged.copied, false) END AS copied,
        coalesce(judged.copied_any, false) AS copied_any,
        CASE
            WHEN known.prompt_id IS NOT NULL AND chosen.threshold IS NOT NULL
                THEN coalesce(judged.own_distance < chosen.threshold, false)
        END AS seen,
        CASE
            WHEN known.prompt_id IS NOT NULL AND chosen.threshold IS NOT NULL
                THEN coalesce(judged.copied AND judged.own_distance < chosen.threshold, false)
        END AS extracted_calibrated,
        coalesce(judged.extracted, false) AS extracted,
        coalesce(judged.extracted_own, false) AS extracted_own,
        CASE
            WHEN NOT coalesce(judged.extracted, false) THEN 0
            WHEN cliques.keep_rule = 'slice' AND NOT coalesce(judged.nearest_generation_l2 <= audits.delta, false)
                THEN 1 / cliques.keep_probability
            ELSE 1
        END AS extraction_weight
    FROM prompts
    JOIN cliques USING (prompt_id)
    CROSS JOIN chosen
    CROSS JOIN (SELECT CAST(parameters ->> '$.match.delta' AS DOUBLE) AS delta FROM audits) AS audits
    LEFT JOIN samples ON samples.sample_id = prompts.sample_id
    LEFT JOIN judged USING (prompt_id)
    LEFT JOIN known ON known.prompt_id = prompts.prompt_id
    WHERE prompts.origin <> 'control'
)

SELECT * FROM final
ORDER BY stratum_order DESC, n_duplicates DESC, prompt_id
