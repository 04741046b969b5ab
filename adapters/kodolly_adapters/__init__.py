"""Raw data in, merged model out."""
