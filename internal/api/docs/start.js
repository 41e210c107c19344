// Shows openapi.json, and keeps the access token in memory alone: a reload forgets it.
SwaggerUIBundle({
  dom_id: '#docs',
  url: 'openapi.json',
  deepLinking: true,
  validatorUrl: null, // the default sends the document to validator.swagger.io
});
