-- Grain: one prompt that was tried (no controls).
-- Source: prompts, cliques, matches, calibration.
-- Thresholds: matches.extracted is l2 <= delta (paper, section 4.2); the calibrated one is calibration.threshold,
-- strictly below, on the image whose caption the prompt is. Prompts whose images were not kept count as not extracted.
WITH chosen AS (
    SELECT distance, threshold FROM calibration WHERE chosen
),

measured AS (
    SELECT
        matches.prompt_id,
        matches.relation,
        matches.extracted,
        CASE chosen.distance
            WHEN 'l2' THEN matches.l2
            WHEN 'tiled_l2' THEN matches.tiled_l2
            ELSE matches.adaptive_l2
        END AS distance
    FROM matches
    CROSS JOIN chosen
    WHERE matches.role = 'training'
),

per_prompt AS (
    SELECT
        prompt_id,
        bool_or(extracted) AS extracted,
        bool_or(extracted AND relation = 'own') AS extracted_own,
        min(distance) FILTER (relation = 'own') AS own_distance
    FROM measured
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
        cliques.n_generated,
        cliques.clique_size,
        cliques.mean_distance,
        cliques.flagged,
        cliques.keep_rule,
        cliques.keep_probability,
        coalesce(per_prompt.extracted, false) AS extracted,
        coalesce(per_prompt.extracted_own, false) AS extracted_own,
        CASE
            WHEN chosen.threshold IS NULL OR prompts.group_id IS NULL THEN NULL
            ELSE coalesce(per_prompt.own_distance < chosen.threshold, false)
        END AS extracted_calibrated
    FROM prompts
    JOIN cliques USING (prompt_id)
    CROSS JOIN chosen
    LEFT JOIN per_prompt USING (prompt_id)
    WHERE prompts.origin <> 'control'
)

SELECT * FROM final
ORDER BY stratum_order DESC, n_duplicates DESC, prompt_id
