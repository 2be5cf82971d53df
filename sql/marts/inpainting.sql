-- Grain: one model whose halves of pictures were made again, or all models of a cohort at one step.
-- Source: inpaintings, models. l2 is over the half that was made, to the target, of the inpaintings that were kept.
-- area: that a member's score (the model's loss over a shadow's, the smaller the more it knows) is below a
-- non-member's. difference: of the same picture, as a member less as a non-member, with Student's t over pictures; of a
-- cohort alone, since no model has a picture on both sides.
WITH tried AS (
    SELECT inpaintings.*, models.cohort, models.step
    FROM inpaintings
    JOIN models ON models.model_id = inpaintings.model_id
),

both_scopes AS (
    SELECT *, 'model' AS scope, model_id AS one_model_id FROM tried
    UNION ALL
    SELECT *, 'cohort' AS scope, NULL AS one_model_id FROM tried
),

gathered AS (
    SELECT
        scope,
        cohort,
        step,
        one_model_id AS model_id,
        count(DISTINCT model_id) AS models,
        count(*) FILTER (status = 'success' AND member) AS members,
        count(*) FILTER (status = 'success' AND NOT member) AS non_members,
        count(*) FILTER (status <> 'success') AS failed,
        max(inpaintings) AS inpaintings,
        max(kept) AS kept,
        mean_interval(
            list(kept_l2 ORDER BY model_id, sample_id) FILTER (status = 'success' AND member)
        ) AS of_members,
        mean_interval(
            list(kept_l2 ORDER BY model_id, sample_id) FILTER (status = 'success' AND NOT member)
        ) AS of_others,
        membership_rates(
            coalesce(list(-score ORDER BY model_id, sample_id) FILTER (isfinite(score)), []),
            coalesce(list(member ORDER BY model_id, sample_id) FILTER (isfinite(score)), []),
            coalesce(list(sample_id ORDER BY model_id, sample_id) FILTER (isfinite(score)), [])
        ) AS rates
    FROM both_scopes
    GROUP BY scope, cohort, step, one_model_id
),

targets AS (
    SELECT
        cohort,
        step,
        sample_id,
        avg(kept_l2) FILTER (member) - avg(kept_l2) FILTER (NOT member) AS difference
    FROM tried
    WHERE status = 'success'
    GROUP BY ALL
),

differences AS (
    SELECT
        cohort,
        step,
        count(difference) AS both_sides,
        mean_interval(list(difference ORDER BY sample_id) FILTER (difference IS NOT NULL)) AS estimate
    FROM targets
    GROUP BY ALL
),

final AS (
    SELECT
        gathered.scope,
        gathered.cohort,
        gathered.step,
        gathered.model_id,
        gathered.models,
        gathered.members,
        gathered.non_members,
        gathered.failed,
        gathered.inpaintings,
        gathered.kept,
        gathered.of_members[1] AS l2_of_members,
        gathered.of_members[2] AS l2_of_members_lower,
        gathered.of_members[3] AS l2_of_members_upper,
        gathered.of_others[1] AS l2_of_non_members,
        gathered.of_others[2] AS l2_of_non_members_lower,
        gathered.of_others[3] AS l2_of_non_members_upper,
        CASE WHEN gathered.scope = 'cohort' THEN differences.both_sides END AS both_sides,
        CASE WHEN gathered.scope = 'cohort' THEN differences.estimate[1] END AS difference,
        CASE WHEN gathered.scope = 'cohort' THEN differences.estimate[2] END AS difference_lower,
        CASE WHEN gathered.scope = 'cohort' THEN differences.estimate[3] END AS difference_upper,
        gathered.rates[1] AS area
    FROM gathered
    LEFT JOIN differences ON differences.cohort = gathered.cohort AND differences.step = gathered.step
)

SELECT * FROM final
ORDER BY scope, cohort, step, model_id NULLS FIRST
