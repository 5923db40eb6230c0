"""What one task's prompt is to another task, and one model's to another model.

`similarity` compares prompts and finds the nearest, `recycling` carries a
prompt over to another model, `ensemble` lets several vote in one pass,
`shift` tells how prompts do on tasks that they were not trained on.
"""
