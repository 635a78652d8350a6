# The checks in serverspec, one example each; BENCH_CHECKS names the file that lists them.
require 'json'
require 'serverspec'

set :backend, :ssh
set :host, ENV.fetch('BENCH_HOST')
set :ssh_options, user: ENV.fetch('BENCH_USER'), keys: [ENV.fetch('BENCH_KEY')], keys_only: true,
                  verify_host_key: :never, config: false
set :disable_sudo, false

JSON.parse(File.read(ENV.fetch('BENCH_CHECKS'))).each do |check|
  case check['type']
  when 'http'
    describe command("curl -fsS -m 5 #{check['url']}") do
      its(:stdout) { should eq '{"status": "ready"}' }
    end
  when 'tcp'
    describe host('127.0.0.1') do
      it { should be_reachable.with(port: check['port'], proto: 'tcp', timeout: 5) }
    end
  when 'postgresql'
    describe command("runuser -u postgres -- psql -XAtqc 'SELECT 1'") do
      its(:stdout) { should eq "1\n" }
    end
  when 'redis'
    describe command('redis-cli ping') do
      its(:stdout) { should eq "PONG\n" }
    end
  else
    describe file(check['path']) do
      it { should be_file.and be_mode 640 }
    end
  end
end
