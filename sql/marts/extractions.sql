-- Grain: one training image (its duplicate group) that came back: some generation is a copy of it, whatever was asked
-- for, or lies within the paper's delta of it; with its best generation.
-- Source: verdicts, prompts, generations, cliques, samples, duplicate_groups, eidetic_counts; training_matches
-- (staging). sample_id is the member of the group that the best generation is nearest to. Best: a copy before what is
-- none, then the smallest coarse_ratio, or l2 where there is no other image to compare with; most confident likewise.
-- punsafe is the largest of the group's: its members are one picture, which metadata may call unsafe at some urls
-- only. Eidetic memorisation with k (paper, definition 2): at most k training images are that near to the extracted
-- one.
WITH candidates AS (
    SELECT training_matches.*, prompts.origin, coalesce(coarse_ratio, l2) AS confidence_distance
    FROM training_matches
    JOIN prompts USING (prompt_id)
    WHERE extracted OR copied
),

called AS (
    SELECT
        group_id,
        bool_or(extracted) AS extracted,
        bool_or(copied) AS copied,
        count(DISTINCT prompt_id) FILTER (copied) AS prompts_copied,
        bool_or(copied AND relation = 'own') AS copied_by_own_caption,
        bool_or(copied AND origin = 'control') AS copied_by_control_caption
    FROM candidates
    GROUP BY group_id
),

-- By the verdicts, not the matches: the group's own prompt may have been tried and none of its images kept.
per_group AS (
    SELECT called.*, bool_or(verdicts.seen) AS seen, bool_or(verdicts.extracted_calibrated) AS extracted_calibrated
    FROM called
    LEFT JOIN verdicts ON verdicts.group_id = called.group_id
    GROUP BY ALL
),

best AS (
    SELECT * FROM candidates
    QUALIFY row_number() OVER (
        PARTITION BY group_id ORDER BY copied DESC, confidence_distance, l2, prompt_id, sample_index
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
        row_number() OVER (ORDER BY best.copied DESC, best.confidence_distance, best.l2, best.sample_id)
            AS confidence_rank,
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
        best.coarse_l2,
        best.coarse_ratio,
        best.l2,
        best.tiled_l2,
        best.adaptive_l2,
        best.nearest_other_l2,
        best.ratio,
        per_group.copied,
        per_group.seen,
        per_group.extracted_calibrated,
        per_group.extracted,
        per_group.prompts_copied,
        per_group.copied_by_own_caption,
        per_group.copied_by_control_caption,
        best.relation,
        best.origin,
        best.group_id,
        best.prompt_id,
        best.sample_index,
        best.regenerated,
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
