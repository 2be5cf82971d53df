-- Every model of the sweep is one row of leakage, whatever became of it.
SELECT models.model_id, count(leakage.model_id) AS rows
FROM models
LEFT JOIN leakage ON leakage.model_id = models.model_id
GROUP BY ALL
HAVING count(leakage.model_id) <> 1
