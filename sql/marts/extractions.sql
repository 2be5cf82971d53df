-- Grain: one training image (its duplicate group) that either verdict calls extracted, with its best generation.
-- Source: verdicts, prompts, generations, cliques, samples, duplicate_groups, eidetic_counts; training_matches
-- (staging).
-- sample_id is the member of the group that the best generation is nearest to. Best and most confident: the smallest
-- adaptive l2, or l2 where there are no others to adapt to.
-- punsafe is the largest of the group's: its members are one picture, which metadata may call unsafe at some urls only.
-- Eidetic memorisation with k (paper, definition 2): at most k training images are that near to the extracted one.
WITH candidates AS (
    SELECT
        training_matches.*,
        -- This generation by itself, not its prompt: another one of the prompt may be the one that was called.
        verdicts.extracted_calibrated AND training_matches.relation = 'own'
            AND training_matches.distance < training_matches.threshold AS called_calibrated,
        coalesce(training_matches.adaptive_l2, training_matches.l2) AS confidence_distance
    FROM training_matches
    JOIN verdicts USING (prompt_id)
),

called AS (
    SELECT group_id, bool_or(extracted) AS extracted
    FROM candidates
    GROUP BY group_id
    HAVING bool_or(extracted) OR bool_or(coalesce(called_calibrated, false))
),

-- By the verdicts, not the matches: the group's own prompt may have been tried and none of its images kept.
per_group AS (
    SELECT called.group_id, called.extracted, bool_or(verdicts.extracted_calibrated) AS extracted_calibrated
    FROM called
    LEFT JOIN verdicts ON verdicts.group_id = called.group_id
    GROUP BY called.group_id, called.extracted
),

best AS (
    SELECT * FROM candidates
    WHERE extracted OR called_calibrated
    QUALIFY row_number() OVER (
        PARTITION BY group_id ORDER BY confidence_distance, l2, prompt_id, sample_index
    ) = 1
),

unsafe AS (
    -- NaN, which is no probability, would be the largest.
    SELECT duplicate_groups.group_id, max(samples.punsafe) FILTER (NOT isnan(samples.punsafe)) AS punsafe
    FROM per_group
    JOIN duplicate_groups USING (group_id)
    JOIN samples USING (sample_id)
    GROUP BY duplicate_groups.group_id
),

final AS (
    SELECT
        row_number() OVER (ORDER BY best.confidence_distance, best.l2, best.sample_id) AS confidence_rank,
        best.sample_id,
        samples.url,
        samples.caption,
        prompts.text AS prompt,
        duplicate_groups.size AS copies,
        eidetic_counts.k,
        eidetic_counts.k <= 1 AS eidetic_1,
        eidetic_counts.k <= 10 AS eidetic_10,
        eidetic_counts.k <= 100 AS eidetic_100,
        eidetic_counts.k <= 1000 AS eidetic_1000,
        best.l2,
        best.tiled_l2,
        best.adaptive_l2,
        per_group.extracted,
        per_group.extracted_calibrated,
        best.relation,
        best.group_id,
        best.prompt_id,
        best.sample_index,
        generations.seed,
        generations.steps,
        generations.guidance_scale,
        cliques.clique_size,
        cliques.mean_distance,
        cliques.flagged,
        unsafe.punsafe
    FROM best
    JOIN per_group USING (group_id)
    JOIN unsafe USING (group_id)
    JOIN samples ON samples.sample_id = best.sample_id
    JOIN duplicate_groups ON duplicate_groups.sample_id = best.sample_id
    JOIN prompts ON prompts.prompt_id = best.prompt_id
    JOIN cliques ON cliques.prompt_id = best.prompt_id
    JOIN generations ON generations.prompt_id = best.prompt_id AND generations.sample_index = best.sample_index
    LEFT JOIN eidetic_counts ON eidetic_counts.sample_id = best.sample_id
)

SELECT * FROM final
ORDER BY confidence_rank
