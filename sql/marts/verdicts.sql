-- Grain: one prompt that was tried (no controls).
-- Source: prompts, cliques, samples, calibration; training_matches (staging).
-- Thresholds: matches.extracted is l2 <= delta (paper, section 4.2); the calibrated one is calibration.threshold,
-- strictly below, on the image whose caption the prompt is. Prompts whose images were not kept count as not extracted.
-- aspect: wide from 5:4 on, upright from 4:5 on.
WITH chosen AS (
    SELECT threshold FROM calibration WHERE chosen
),

per_prompt AS (
    SELECT
        prompt_id,
        bool_or(extracted) AS extracted,
        bool_or(extracted AND relation = 'own') AS extracted_own,
        min(l2) AS nearest_l2,
        min(distance) FILTER (relation = 'own') AS own_distance
    FROM training_matches
    GROUP BY prompt_id
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
        per_prompt.nearest_l2,
        per_prompt.own_distance,
        coalesce(per_prompt.extracted, false) AS extracted,
        coalesce(per_prompt.extracted_own, false) AS extracted_own,
        CASE
            WHEN chosen.threshold IS NULL OR prompts.group_id IS NULL THEN NULL
            ELSE coalesce(per_prompt.own_distance < chosen.threshold, false)
        END AS extracted_calibrated
    FROM prompts
    JOIN cliques USING (prompt_id)
    CROSS JOIN chosen
    LEFT JOIN samples ON samples.sample_id = prompts.sample_id
    LEFT JOIN per_prompt USING (prompt_id)
    WHERE prompts.origin <> 'control'
)

SELECT * FROM final
ORDER BY stratum_order DESC, n_duplicates DESC, prompt_id
