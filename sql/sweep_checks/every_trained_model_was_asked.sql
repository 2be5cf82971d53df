-- Every model that was trained is asked for pictures once, and each that is asked was trained.
SELECT models.model_id, attacks.model_id AS asked
FROM (SELECT * FROM models WHERE status IN ('success', 'forgotten')) AS models
FULL JOIN untargeted_attacks AS attacks ON attacks.model_id = models.model_id
WHERE models.model_id IS NULL OR (attacks.model_id IS NULL AND models.status = 'success')
UNION ALL
SELECT model_id, model_id FROM untargeted_attacks GROUP BY model_id HAVING count(*) > 1
